from .failures import (
    KINDS as KINDS,
)
from .failures import (
    LOOP as LOOP,
)
from .failures import (
    build as build,
)
from .failures import (
    failure_mode as failure_mode,
)
from .loading import (
    BENCHMARKS as BENCHMARKS,
)
from .loading import (
    GeneratedTask as GeneratedTask,
)
from .loading import (
    ListTask as ListTask,
)
from .loading import (
    Task as Task,
)
from .loading import (
    load_task as load_task,
)
from .loading import (
    own_question as own_question,
)
from .loading import (
    without_long_prompts as without_long_prompts,
)
from .rows import (
    LeftOut as LeftOut,
)
from .rows import (
    Source as Source,
)
from .rows import (
    answer_in as answer_in,
)
from .rows import (
    listing as listing,
)
from .rows import (
    questions_of as questions_of,
)
from .rows import (
    read_rows as read_rows,
)
from .rows import (
    text_in as text_in,
)
from .shop import (
    STRATEGIES as STRATEGIES,
)
from .shop import (
    Labels as Labels,
)
from .shop import (
    Problem as Problem,
)
from .shop import (
    Step as Step,
)
from .shop import (
    Strategy as Strategy,
)
from .shop import (
    Use as Use,
)
from .shop import (
    label as label,
)
from .shop import (
    parse_problem as parse_problem,
)
from .shop import (
    product_questions as product_questions,
)
from .shop import (
    shop_questions as shop_questions,
)
from .shop import (
    write_solution as write_solution,
)
