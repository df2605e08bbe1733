from .failures import (
    KINDS as KINDS,
    LOOP as LOOP,
    build as build,
    failure_mode as failure_mode,
)
from .loading import (
    BENCHMARKS as BENCHMARKS,
    GeneratedTask as GeneratedTask,
    ListTask as ListTask,
    Task as Task,
    load_task as load_task,
    own_question as own_question,
    without_long_prompts as without_long_prompts,
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
    Labels as Labels,
    Problem as Problem,
    Step as Step,
    Strategy as Strategy,
    Use as Use,
    label as label,
    parse_problem as parse_problem,
    product_questions as product_questions,
    shop_questions as shop_questions,
    write_solution as write_solution,
)
