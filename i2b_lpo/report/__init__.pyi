from .page import (
    NAMES as NAMES,
)
from .page import (
    summary as summary,
)
from .page import (
    tour_page as tour_page,
)
