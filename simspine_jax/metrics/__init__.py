"""How far predictions are from the truth: in 3D, in pictures, and in the angles of the spine."""
