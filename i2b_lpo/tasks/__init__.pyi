from .benchmarks import (
    BENCHMARKS as BENCHMARKS,
)
from .domains import (
    DOMAINS as DOMAINS,
)
from .domains import (
    domain_named as domain_named,
)
from .domains import (
    judge as judge,
)
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
from .labels import (
    Labels as Labels,
)
from .labels import (
    Step as Step,
)
from .labels import (
    Use as Use,
)
from .labels import (
    label as label,
)
from .loading import (
    load_examples as load_examples,
)
from .loading import (
    load_task as load_task,
)
from .loading import (
    own_question as own_question,
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
    Problem as Problem,
)
from .shop import (
    Strategy as Strategy,
)
from .shop import (
    parse_problem as parse_problem,
)
from .shop import (
    product_questions as product_questions,
)
from .shop import (
    shop_examples as shop_examples,
)
from .shop import (
    shop_questions as shop_questions,
)
from .shop import (
    write_solution as write_solution,
)
from .task import (
    Domain as Domain,
)
from .task import (
    Example as Example,
)
from .task import (
    GeneratedTask as GeneratedTask,
)
from .task import (
    ListTask as ListTask,
)
from .task import (
    Task as Task,
)
from .task import (
    without_long_prompts as without_long_prompts,
)
