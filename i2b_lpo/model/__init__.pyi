from .cache import (
    KeyValues as KeyValues,
)
from .cache import (
    RoomyLayer as RoomyLayer,
)
from .cache import (
    gather as gather,
)
from .cache import (
    new_cache as new_cache,
)
from .cache import (
    take_rows as take_rows,
)
from .decoding import (
    Decoded as Decoded,
)
from .decoding import (
    Prefix as Prefix,
)
from .decoding import (
    Sampling as Sampling,
)
from .decoding import (
    decode as decode,
)
from .decoding import (
    decode_branches as decode_branches,
)
from .decoding import (
    read_without_z as read_without_z,
)
from .exporting import (
    export as export,
)
from .inject import (
    MASKED as MASKED,
)
from .inject import (
    check_injectable as check_injectable,
)
from .inject import (
    injected as injected,
)
from .inject import (
    shape_of as shape_of,
)
from .inject import (
    slot_mask as slot_mask,
)
from .logprobs import (
    chunked_logprobs as chunked_logprobs,
)
from .logprobs import (
    policy_logprobs as policy_logprobs,
)
from .padding import (
    left_pad as left_pad,
)
from .padding import (
    mark as mark,
)
from .padding import (
    micro_batches as micro_batches,
)
from .padding import (
    right_pad as right_pad,
)
from .policy import (
    BOXED_INSTRUCTION as BOXED_INSTRUCTION,
)
from .policy import (
    BUNDLED as BUNDLED,
)
from .policy import (
    Policy as Policy,
)
from .policy import (
    asset_path as asset_path,
)
from .policy import (
    check_finite as check_finite,
)
from .policy import (
    load_policy as load_policy,
)
from .policy import (
    make_policy as make_policy,
)
from .policy import (
    save_policy as save_policy,
)
from .steering import (
    Steering as Steering,
)
from .steering import (
    embed as embed,
)
from .steering import (
    embed_pairs as embed_pairs,
)
from .steering import (
    latest_version as latest_version,
)
from .steering import (
    load_steering as load_steering,
)
from .steering import (
    new_steering as new_steering,
)
from .steering import (
    save_steering as save_steering,
)
