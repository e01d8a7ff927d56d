"""Array types and the names of dimensions used in signatures.

=====  ==========================================
T      frames of a clip
V      camera views
K      markers (3D) or keypoints (2D)
Q      free coordinates
C      all coordinates, in OpenSim's order
N      joint positions of MuJoCo (``qpos``)
B      bodies, ground left out
=====  ==========================================
"""

from __future__ import annotations

from jaxtyping import Array, Bool, Float, Int

__all__ = ["Array", "Bool", "Float", "Int"]
