from .files import (
    inside as inside,
)
from .files import (
    staged as staged,
)
from .files import (
    write_text as write_text,
)
from .memory import (
    OutOfMemory as OutOfMemory,
)
from .memory import (
    halving as halving,
)
from .memory import (
    lowering as lowering,
)
from .memory import (
    one_pass as one_pass,
)
from .memory import (
    ran_out as ran_out,
)
from .secrets import (
    REDACTED as REDACTED,
)
from .secrets import (
    redact as redact,
)
from .signals import (
    Interrupted as Interrupted,
)
from .signals import (
    Signals as Signals,
)
from .text import (
    visible as visible,
)
from .weights import (
    check_sums as check_sums,
)
from .weights import (
    check_weights as check_weights,
)
from .weights import (
    file_sum as file_sum,
)
from .weights import (
    replaced as replaced,
)
from .weights import (
    write_sums as write_sums,
)
