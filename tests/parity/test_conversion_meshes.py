"""Bone meshes: every vertex is where OpenSim draws it, whatever the file format."""

import mujoco
import numpy as np
import pytest

osim = pytest.importorskip("opensim")

from osim2mjcf import convert  # noqa: E402
from osim2mjcf import verify as parity  # noqa: E402
from osim2mjcf.meshes import _note, read_triangles, write_stl  # noqa: E402
from osim_models import body, joint, offset_frame, save  # noqa: E402

from simspine_jax import assets, errors  # noqa: E402
from simspine_jax.io.sidecar import read_sidecar  # noqa: E402

# MuJoCo holds mesh vertices in float32.
VERTEX_TOLERANCE_M = 1e-6
POINTS = np.array([[0, 0, 0], [0.3, 0, 0], [0.3, 0.2, 0], [0, 0.2, 0], [0.1, 0.1, 0.4]])
PYRAMID = [(0, 2, 1), (0, 3, 2), (0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)]


def vtp(polygons, strips=()):
    def cells(name, items):
        connectivity = " ".join(str(i) for item in items for i in item)
        offsets = " ".join(map(str, np.cumsum([len(item) for item in items], dtype=int)))
        return (
            f'<{name}><DataArray Name="connectivity" format="ascii">{connectivity}</DataArray>'
            f'<DataArray Name="offsets" format="ascii">{offsets}</DataArray></{name}>'
        )

    points = " ".join(map(str, POINTS.ravel()))
    return (
        '<VTKFile type="PolyData"><PolyData><Piece><Points>'
        f'<DataArray NumberOfComponents="3" format="ascii">{points}</DataArray></Points>'
        f"{cells('Polys', polygons)}{cells('Strips', strips)}</Piece></PolyData></VTKFile>"
    )


def ascii_stl(faces):
    rows = ["solid pyramid"]
    for face in faces:
        corners = "\n".join(f"vertex {x} {y} {z}" for x, y, z in POINTS[list(face)])
        rows.append(f"facet normal 0 0 0\nouter loop\n{corners}\nendloop\nendfacet")
    return "\n".join([*rows, "endsolid"])


def obj(faces):
    rows = [f"v {x} {y} {z}" for x, y, z in POINTS]
    return "\n".join([*rows, *(f"f {' '.join(f'{i + 1}//1' for i in face)}" for face in faces)])


def as_set(triangles):
    """Triangles irrespective of the order of faces and of where a face begins, but not of its sense."""
    rolled = [min(tuple(map(tuple, np.roll(t, k, axis=0).round(6))) for k in range(3)) for t in triangles]
    return set(rolled)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.vtp", vtp([(0, 3, 2, 1), *PYRAMID[2:]])),
        ("b.vtp", vtp(PYRAMID[2:], strips=[(1, 0, 2, 3)])),
        ("c.stl", ascii_stl(PYRAMID)),
        ("d.obj", obj([(0, 3, 2, 1), *PYRAMID[2:]])),
    ],
)
def test_formats_give_the_same_faces(name, text, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    found = as_set(read_triangles(path))
    assert len(found) == 6
    assert found >= as_set(POINTS[PYRAMID[2:]])
    write_stl(tmp_path / "again.stl", read_triangles(path))
    assert as_set(read_triangles(tmp_path / "again.stl")) == found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.vtp", "<VTKFile"),
        ("b.vtp", "<VTKFile><PolyData><Piece/></PolyData></VTKFile>"),
        ("c.vtp", vtp([(0, 1, 9)])),
        ("d.vtp", vtp(PYRAMID).replace("ascii", "binary")),
        ("e.vtp", vtp(PYRAMID).replace("0.3", "nan")),
        ("f.stl", "solid nothing"),
        ("g.stl", "vertex 1 2 3"),
        ("h.stl", ascii_stl(PYRAMID).replace("vertex 0.3", "vertex x")),
        ("i.obj", "v 1 2 3\nf 1 2 3"),
        ("j.ply", "ply"),
    ],
)
def test_damaged_files_are_refused(name, text, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(errors.FileFormatError, match=name) as caught:
        read_triangles(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def boned(tmp_path):
    """A model with a mesh on a body, one on a turned offset frame, one missing, one hidden, and a sphere."""
    rng = np.random.default_rng(2)
    model = osim.Model()
    model.setName("boned")
    near, far = body("near", rng), body("far", rng)
    model.addBody(near)
    model.addBody(far)
    model.addJoint(joint("Free", "root", model.getGround(), near, rng))
    model.addJoint(joint("Gimbal", "j", near, far, rng))
    frame = offset_frame("shelf", far, rng)
    for place, name, scale in (
        (near, "bone.vtp", (1, 1, 1)),
        (far, "bone.vtp", (1.5, 0.5, 2)),
        (frame, "C:\\Geometry\\other.stl", (-1, 1, 1)),
        (far, "lost.vtp", (1, 1, 1)),
        (far, "hidden.vtp", (1, 1, 1)),
    ):
        mesh = osim.Mesh(name)
        mesh.set_scale_factors(osim.Vec3(*map(float, scale)))
        mesh.setColor(osim.Vec3(0.2, 0.4, 0.6))
        mesh.upd_Appearance().set_visible(name != "hidden.vtp")
        place.attachGeometry(mesh)
    near.attachGeometry(osim.Sphere(0.1))
    folder = tmp_path / "Geometry"
    folder.mkdir()
    (folder / "bone.vtp").write_text(vtp(PYRAMID))
    (folder / "other.stl").write_text(ascii_stl(PYRAMID))
    return save(model, tmp_path / "boned.osim"), folder


def test_vertices_are_where_opensim_has_them(boned, tmp_path):
    path, folder = boned
    converted = convert(path, tmp_path / "out", meshes=folder)
    description = read_sidecar(converted.with_suffix(".json"))
    assert sorted((g.body, g.file) for g in description.geometry) == [
        ("far", "bone.stl"),
        ("far", "other.stl"),
        ("near", "bone.stl"),
    ]
    assert description.geometry[0].color == pytest.approx((0.2, 0.4, 0.6, 1.0))
    notes = " ".join(description.notes)
    assert "1 mesh files that are not in" in notes
    assert "lost.vtp" in notes
    assert "hidden" not in notes
    assert "shapes that are not meshes" in notes
    assert sorted(p.name for p in (tmp_path / "out" / "meshes").iterdir()) == ["bone.stl", "other.stl"]
    source = parity.load_osim(path)
    state = source.initSystem()
    rng = np.random.default_rng(0)
    coordinates = source.getCoordinateSet()
    q = rng.normal(0, 1, coordinates.getSize())
    for i, value in enumerate(q):
        coordinates.get(i).setValue(state, float(value), False)
    source.realizePosition(state)
    wanted = [
        w
        for c in source.getComponentsList()
        if (w := drawn_by_opensim(osim.Mesh.safeDownCast(c), state)) is not None
    ]
    names = [coordinates.get(i).getName() for i in range(coordinates.getSize())]
    m = mujoco.MjModel.from_xml_path(str(converted))
    d = mujoco.MjData(m)
    for name, value in zip(names, q, strict=True):
        d.joint(name).qpos[0] = value
    mujoco.mj_kinematics(m, d)
    found = [drawn_by_mujoco(m, d, i) for i in range(m.ngeom)]
    assert len(found) == len(wanted) == 3
    for points in found:
        distances = [np.linalg.norm(points[:, None] - other[None], axis=-1) for other in wanted]
        assert min(max(x.min(axis=0).max(), x.min(axis=1).max()) for x in distances) < VERTEX_TOLERANCE_M


def drawn_by_opensim(mesh, state):
    if mesh is None or mesh.get_mesh_file() in ("lost.vtp", "hidden.vtp"):
        return None
    scale = mesh.get_scale_factors().to_numpy()
    transform = mesh.getFrame().getTransformInGround(state)
    rotation = np.array([[transform.R().get(i, j) for j in range(3)] for i in range(3)])
    return (POINTS * scale) @ rotation.T + transform.p().to_numpy()


def drawn_by_mujoco(m, d, geom):
    start, count = m.mesh_vertadr[m.geom_dataid[geom]], m.mesh_vertnum[m.geom_dataid[geom]]
    return m.mesh_vert[start : start + count] @ d.geom_xmat[geom].reshape(3, 3).T + d.geom_xpos[geom]


def test_a_missing_folder_is_an_error(boned, tmp_path):
    with pytest.raises(errors.FileFormatError, match=r"no folder .*nowhere"):
        convert(boned[0], tmp_path / "out", meshes=tmp_path / "nowhere")


def test_a_folder_without_any_of_the_meshes_is_an_error(boned, tmp_path):
    with pytest.raises(errors.FileFormatError, match=r"has none of the model's meshes \(C:.*, bone\.vtp, "):
        convert(boned[0], tmp_path / "out", meshes=tmp_path)
    assert not (tmp_path / "out").exists()


def test_at_most_five_names_are_told():
    assert _note("are lost", list("abcdefg")) == "7 are lost: a, b, c, d, e and 2 more"


def test_every_bone_of_the_spine_model_compiles(spine_osim, tmp_path):
    converted = convert(spine_osim, tmp_path, meshes=assets.geometry_path())
    description = read_sidecar(converted.with_suffix(".json"))
    assert len(description.geometry) > 100
    assert not [note for note in description.notes if "mesh" in note]
    assert mujoco.MjModel.from_xml_path(str(converted)).ngeom == len(description.geometry)
