"""Where a rank can be killed inside a save, in the order of the save."""

from __future__ import annotations

from typing import Any

Point = tuple[dict[str, Any], int]

COMMIT = "train.checkpoint.commit"
DEEPSPEED = "train.checkpoint.deepspeed_state"

# Each list is for one run folder: (an order, the step of the newest finished checkpoint afterwards). The first kills in
# the second save, of step 4; the others, which resume from step 2, in their first.
SINGLE: tuple[Point, ...] = (
    ({"at": f"{COMMIT}:_prepare", "nth": 2}, 2),
    ({"at": "train.checkpoint.replicated_state:save_file", "nth": 1}, 2),
    ({"at": "train.checkpoint.replicated_state:save_file", "nth": 2}, 2),
    ({"at": f"{COMMIT}:sync_tree"}, 2),
    ({"at": f"{COMMIT}:_digest_share"}, 2),
    ({"at": f"{COMMIT}:_write_manifest"}, 2),
    ({"at": f"{COMMIT}:_publish"}, 2),
    ({"at": f"{COMMIT}:_publish", "when": "after"}, 4),
    ({"at": "train.checkpoint.folders:prune"}, 6),
    ({"at": "train.checkpoint.folders:_remove"}, 8),
)
# What the ranks have in common after their files are written; rank 0 alone writes the manifest.
TOGETHER: tuple[Point, ...] = (
    ({"at": f"{COMMIT}:sync_tree", "rank": 1}, 2),
    ({"at": f"{COMMIT}:_digest_share", "rank": 1}, 2),
    ({"at": f"{COMMIT}:_write_manifest", "rank": 0}, 2),
    ({"at": f"{COMMIT}:_publish", "when": "after", "rank": 0}, 4),
)
DDP: tuple[Point, ...] = (
    ({"at": "train.checkpoint.replicated_state:save_file", "nth": 3, "rank": 0}, 2),
    ({"at": "train.checkpoint.replicated_state:save_file", "nth": 2, "rank": 0}, 2),
    *TOGETHER,
)
# Under ZeRO rank 0 writes two pickled files, the others one.
ZERO: tuple[Point, ...] = (
    ({"at": f"{DEEPSPEED}:write", "nth": 2, "rank": 1}, 2),
    ({"at": f"{DEEPSPEED}:write", "rank": 0}, 2),
    ({"at": f"{DEEPSPEED}:torch.save", "nth": 2, "rank": 0}, 2),
    ({"at": f"{DEEPSPEED}:torch.save", "rank": 1}, 2),
    ({"at": f"{DEEPSPEED}:torch.save", "when": "after", "rank": 1}, 2),
    *TOGETHER,
)
POINTS = {"single": SINGLE, "ddp": DDP, "zero2": ZERO}
