from .page import (
    NAMES as NAMES,
    summary as summary,
    tour_page as tour_page,
)
from .runs import (
    Run as Run,
)
