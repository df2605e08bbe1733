from .benchmarks import (
    BENCHMARKS as BENCHMARKS,
    load_benchmark as load_benchmark,
    load_file as load_file,
)
from .domains import (
    DOMAINS as DOMAINS,
    domain_named as domain_named,
    judge as judge,
)
from .failures import (
    KINDS as KINDS,
    LOOP as LOOP,
    build as build,
    failure_mode as failure_mode,
)
from .labels import (
    Labels as Labels,
    Step as Step,
    Use as Use,
    label as label,
)
from .loading import (
    load_examples as load_examples,
    load_task as load_task,
    own_question as own_question,
)
from .maths import (
    BOXED_INSTRUCTION as BOXED_INSTRUCTION,
    MATHS as MATHS,
)
from .rows import (
    LeftOut as LeftOut,
    Source as Source,
    answer_in as answer_in,
    listing as listing,
    questions_of as questions_of,
    read_rows as read_rows,
    text_in as text_in,
)
from .shop import (
    STRATEGIES as STRATEGIES,
    Problem as Problem,
    Strategy as Strategy,
    parse_problem as parse_problem,
    product_questions as product_questions,
    shop_examples as shop_examples,
    shop_questions as shop_questions,
    write_solution as write_solution,
)
from .splits import (
    SPLITS as SPLITS,
    check_split as check_split,
    split_of as split_of,
)
from .task import (
    Domain as Domain,
    Example as Example,
    GeneratedTask as GeneratedTask,
    ListTask as ListTask,
    Task as Task,
    without_long_prompts as without_long_prompts,
)
