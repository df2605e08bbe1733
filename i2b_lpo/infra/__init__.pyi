from .files import (
    inside as inside,
    staged as staged,
    write_text as write_text,
)
from .memory import (
    OutOfMemory as OutOfMemory,
    halving as halving,
    lowering as lowering,
    one_pass as one_pass,
    ran_out as ran_out,
)
from .secrets import (
    REDACTED as REDACTED,
    redact as redact,
)
from .signals import (
    Interrupted as Interrupted,
    Signals as Signals,
)
from .text import (
    visible as visible,
)
from .weights import (
    check_sums as check_sums,
    check_weights as check_weights,
    file_sum as file_sum,
    replaced as replaced,
    write_sums as write_sums,
)
