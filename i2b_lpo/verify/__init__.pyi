from .references import (
    box_begins as box_begins,
    extract_boxed as extract_boxed,
    gold_answer as gold_answer,
    gsm8k_gold as gsm8k_gold,
    unboxed as unboxed,
)
from .verdict import (
    Reason as Reason,
    Verdict as Verdict,
    check_gold as check_gold,
    equivalent as equivalent,
    verify as verify,
    verify_batch as verify_batch,
)
