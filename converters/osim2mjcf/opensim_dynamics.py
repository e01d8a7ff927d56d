"""OpenSim's own dynamics to compare with: Simbody's mass matrix, inverse dynamics and joint reactions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import opensim as osim

from osim2mjcf.reader import quiet


class OpenSimDynamics:
    """A model without muscles and other forces; arrays are in the order of its coordinates or bodies.

    Args:
        path: an ``.osim`` file.
        loads: an ``ExternalLoads`` setup.
    """

    def __init__(self, path: Path, loads: Path | None = None) -> None:
        quiet()
        self.model = osim.Model(str(path))
        self.model.updForceSet().clearAndDestroy()
        if loads is not None:
            # The model takes the loads over, so Python must not free them too.
            self.loads = osim.ExternalLoads(str(loads), True)
            self.loads.thisown = False
            self.model.addModelComponent(self.loads)
        self.state = self.model.initSystem()
        found = self.model.getCoordinateSet()
        self.coordinates = [found.get(i) for i in range(found.getSize())]
        self.names = [c.getName() for c in self.coordinates]
        self.bodies = list(self.model.getBodyList())
        for coordinate in self.coordinates:
            coordinate.setLocked(self.state, False)
        self.order = [self._place(c) for c in self.coordinates]

    def _place(self, coordinate) -> int:
        """Where Simbody has the coordinate's speed."""
        self.state.updU().setToZero()
        coordinate.setSpeedValue(self.state, 1.0)
        u = self.state.getU()
        (place,) = [i for i in range(u.size()) if u.get(i) != 0]
        return place

    def set_pose(
        self, values: Sequence[float], speeds: Sequence[float] | None = None, time: float = 0.0
    ) -> None:
        """Puts the coordinates where they are told, rad and m, whatever the constraints say."""
        self.state.setTime(time)
        for i, coordinate in enumerate(self.coordinates):
            coordinate.setValue(self.state, float(values[i]), False)
            coordinate.setSpeedValue(self.state, 0.0 if speeds is None else float(speeds[i]))

    def mass_matrix(self) -> np.ndarray:
        """Simbody's ``calcM`` [C C]."""
        self.model.realizePosition(self.state)
        matrix = osim.Matrix()
        self.model.getMatterSubsystem().calcM(self.state, matrix)
        return matrix.to_numpy()[np.ix_(self.order, self.order)]

    def centre_of_mass(self) -> np.ndarray:
        """In ground, m."""
        self.model.realizePosition(self.state)
        center = self.model.calcMassCenterPosition(self.state)
        return np.array([center.get(i) for i in range(3)])

    def inverse_dynamics(self, accelerations: Sequence[float]) -> np.ndarray:
        """The solver's generalised forces [C], which know no constraints, N m or N."""
        udot = osim.Vector(len(self.order), 0.0)
        for place, value in zip(self.order, accelerations, strict=True):
            udot.set(place, float(value))
        forces = osim.InverseDynamicsSolver(self.model).solve(self.state, udot)
        return forces.to_numpy()[self.order]

    def reactions(self, accelerations: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Force and moment on each body by its joint, at the joint's child frame, in the body's axes.

        The joints' own actuators supply the moving forces, so that nothing accelerates otherwise.
        """
        tau = self.inverse_dynamics(accelerations)
        model = self.model.clone()
        for name in self.names:
            actuator = osim.CoordinateActuator(name)
            actuator.setName(f"drive_{name}")
            actuator.setOptimalForce(1.0)
            model.addForce(actuator)
            actuator.thisown = False
        state = self._released(model)
        forces = model.getForceSet()
        for i, value in enumerate(tau):
            actuator = osim.ScalarActuator.safeDownCast(forces.get(i))
            actuator.overrideActuation(state, True)
            actuator.setOverrideActuation(state, float(value))
        model.realizeAcceleration(state)
        found = {}
        for joint in model.getJointList():
            body, spatial = self._reaction(model, state, joint)
            found[body] = spatial
        rows = np.array([found[b.getName()] for b in self.bodies])
        return rows[:, 3:], rows[:, :3]

    def _released(self, model) -> osim.State:
        """The pose of this model in another one that knows no constraints."""
        model.updConstraintSet().clearAndDestroy()
        coordinates = model.updCoordinateSet()
        for i in range(coordinates.getSize()):
            coordinates.get(i).setDefaultLocked(False)
            coordinates.get(i).setDefaultClamped(False)
        state = model.initSystem()
        for i, coordinate in enumerate(self.coordinates):
            coordinates.get(i).setValue(state, coordinate.getValue(self.state), False)
            coordinates.get(i).setSpeedValue(state, coordinate.getSpeedValue(self.state))
        return state

    @staticmethod
    def _reaction(model, state, joint) -> tuple[str, list[float]]:
        child = joint.getChildFrame()
        body = osim.Body.safeDownCast(child.findBaseFrame())
        spatial = joint.calcReactionOnChildExpressedInGround(state)
        turned = [model.getGround().expressVectorInAnotherFrame(state, spatial.get(k), body) for k in (0, 1)]
        return body.getName(), [v.get(k) for v in turned for k in range(3)]
