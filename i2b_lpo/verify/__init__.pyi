from .references import (
    extract_boxed as extract_boxed,
)
from .references import (
    gold_answer as gold_answer,
)
from .references import (
    gsm8k_gold as gsm8k_gold,
)
from .references import (
    unboxed as unboxed,
)
from .verdict import (
    Reason as Reason,
)
from .verdict import (
    Verdict as Verdict,
)
from .verdict import (
    check_gold as check_gold,
)
from .verdict import (
    equivalent as equivalent,
)
from .verdict import (
    verify as verify,
)
from .verdict import (
    verify_batch as verify_batch,
)
