from .cache import (
    KeyValues as KeyValues,
    RoomyLayer as RoomyLayer,
    gather as gather,
    new_cache as new_cache,
    take_rows as take_rows,
)
from .decoding import (
    Decoded as Decoded,
    Prefix as Prefix,
    decode as decode,
    decode_branches as decode_branches,
    read_without_z as read_without_z,
    unread as unread,
)
from .exporting import (
    export as export,
)
from .inject import (
    MASKED as MASKED,
    check_injectable as check_injectable,
    injected as injected,
    shape_of as shape_of,
    slot_mask as slot_mask,
)
from .logprobs import (
    chunked_logprobs as chunked_logprobs,
    policy_logprobs as policy_logprobs,
    row_logprobs as row_logprobs,
)
from .padding import (
    left_pad as left_pad,
    mark as mark,
    micro_batches as micro_batches,
    right_pad as right_pad,
)
from .policy import (
    BUNDLED as BUNDLED,
    Policy as Policy,
    asset_path as asset_path,
    check_finite as check_finite,
    load_policy as load_policy,
    make_policy as make_policy,
    save_policy as save_policy,
)
from .sampling import (
    Sampling as Sampling,
    draw as draw,
)
from .steering import (
    Steering as Steering,
    embed as embed,
    embed_pairs as embed_pairs,
    latest_version as latest_version,
    load_steering as load_steering,
    new_steering as new_steering,
    save_steering as save_steering,
)
