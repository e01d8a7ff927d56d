"""Loads and motions for tests of dynamics."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def random_motion(names: Sequence[str], rng: np.random.Generator, count: int) -> tuple[np.ndarray, ...]:
    """Values within 1 rad and m of zero, with speeds and accelerations of a brisk movement."""
    shape = (count, len(names))
    return rng.uniform(-1, 1, shape), rng.normal(0, 3, shape), rng.normal(0, 30, shape)


def write_loads(folder: Path) -> Path:
    """A setup with one load of each kind over half a second: in ground, in bodies' frames, torque alone."""
    rng = np.random.default_rng(8)
    times = np.linspace(0, 0.5, 26)
    labels = [f"{kind}{axis}" for kind in ("1_f_v", "1_f_p", "1_t_", "2_f_v", "3_t_") for axis in "xyz"]
    phases = rng.uniform(0, 6, len(labels))
    sizes = np.repeat([500.0, 0.2, 30.0, 300.0, 20.0], 3)
    data = sizes * np.sin(12 * times[:, None] + phases)
    rows = ["\t".join(map(repr, (float(t), *map(float, row)))) for t, row in zip(times, data, strict=True)]
    header = f"loads\nversion=1\nnRows={len(rows)}\nnColumns={1 + len(labels)}\ninDegrees=no\nendheader"
    (folder / "loads.mot").write_text("\n".join([header, "\t".join(["time", *labels]), *rows]) + "\n")
    forces = [
        force("right", "calcn_r", "1_f_v", "1_f_p", "1_t_", "ground", "ground"),
        force("left", "calcn_l", "2_f_v", "", "", "torso", "ground"),
        force("inner", "torso", "2_f_v", "1_f_p", "3_t_", "tibia_r", "pelvis"),
        force("twist", "pelvis", "", "", "3_t_", "ground", "ground"),
    ]
    path = folder / "loads.xml"
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n<OpenSimDocument Version="40000">\n'
        f'<ExternalLoads name="loads"><objects>{"".join(forces)}</objects><groups/>'
        "<datafile>loads.mot</datafile></ExternalLoads>\n</OpenSimDocument>\n"
    )
    return path


def force(name: str, body: str, force: str, point: str, torque: str, force_body: str, point_body: str) -> str:
    """An ``ExternalForce`` as OpenSim writes it."""
    return (
        f'<ExternalForce name="{name}"><applied_to_body>{body}</applied_to_body>'
        f"<force_expressed_in_body>{force_body}</force_expressed_in_body>"
        f"<point_expressed_in_body>{point_body}</point_expressed_in_body>"
        f"<force_identifier>{force}</force_identifier><point_identifier>{point}</point_identifier>"
        f"<torque_identifier>{torque}</torque_identifier></ExternalForce>"
    )
