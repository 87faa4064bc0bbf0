"""A short sketch of a text's embedding: what a record keeps of it, so that drift sees a change of subject without any text.

A fixed projection onto random signs (Achlioptas 2003) of the unit vector: distances are kept to about a quarter, in 16 numbers a
record instead of hundreds. The same embedding gives the same sketch in every process and release.
"""

import functools
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIZE = 16


def sketch(embeddings: "NDArray[np.floating]") -> "NDArray[np.float64]":
    """(n, d) -> (n, SIZE), rounded to four decimals; a vector of zeros stays one."""
    import numpy as np  # takes 0.1 s: a service loads it while its bundle is hashed

    wide = embeddings.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(np.round(wide / np.where(lengths > 0, lengths, 1) @ _signs(wide.shape[1]), 4))


@functools.cache
def _signs(d: int) -> "NDArray[np.float64]":
    """(d, SIZE) of plus and minus a quarter: from Python's generator, whose stream no release has changed."""
    import numpy as np

    drawn = random.Random(16)
    drawn_signs = [[1.0 if drawn.getrandbits(1) else -1.0 for _ in range(SIZE)] for _ in range(d)]
    return np.asarray(np.array(drawn_signs, np.float64) / SIZE**0.5)
