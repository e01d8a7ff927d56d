"""The suite ``detection``: what is measured of the detectors, what the project promises, and what gates.

No picture of a person is in it: pictures are rendered, or random numbers where only the arithmetic counts.
"""

from __future__ import annotations

from functools import partial

from benchmarks.metrics import Metric, Suite, Workload, late

# Tolerances: as in the suite ``kinematics``.
_ROUNDING, _TIMES, _SOLVED = 4.0, 0.25, 0.1

MODELS = ("spinepose_s", "spinepose_m", "spinepose_l", "rtmpose_m", "hrnet_w32", "vitpose_b")
FAST = ("spinepose_s", "spinepose_m")  # promised to be as fast as the peers

_models, _training = partial(late, "detection_models"), partial(late, "detection_training")


def _of(model: str) -> tuple[Metric, ...]:
    key, fast = f"detection/{model}", 1.0 if model in FAST else None
    return (
        Metric(f"{key}/params_m", "M", "lower", 0.0, None,
               "Weights, without statistics of batches, with 37 keypoints; what is published must come out."),
        Metric(f"{key}/parity_rel", "1", "lower", _ROUNDING, 1e-4,
               "Largest difference from PyTorch's outputs over the largest output; one picture, float32."),
        Metric(f"{key}/images_per_s", "1/s", "higher", None, None,
               "Pictures of 256x192 through the network, float32.", is_timing=True),
        Metric(f"{key}/vs_onnxruntime", "ratio", "higher", _TIMES, fast,
               "Its rate over ONNX Runtime's, with the same weights, batch and cores.", is_timing=True),
        Metric(f"{key}/vs_pytorch", "ratio", "higher", _TIMES, fast,
               "Its rate over PyTorch's, with the same weights, batch and cores.", is_timing=True),
        Metric(f"{key}/overfit_auc", "1", "higher", None, 0.9,
               "AUC, of 0.95 at most, on the 32 rendered pictures that it was trained on."),
    )  # fmt: skip


# Trained weights move with processor and number of cores, so that scores are promised and don't gate.
METRICS = (
    *(metric for model in MODELS for metric in _of(model)),
    Metric("detection/augment_crops_per_s", "1/s", "higher", None, 1000.0,
           "What feeds a training: pictures read, decoded, warped and blurred on the host, coloured on the "
           "device; the hardest stage, crops of 256x192.", is_timing=True),
    Metric("detection/train_images_per_s/spinepose_s", "1/s", "higher", None, None,
           "Crops per second in training, making them included.", is_timing=True),
    Metric("detection/spinepose_s/synthetic_auc", "1", "higher", None, 0.75,
           "AUC of all keypoints on subjects and backgrounds that it was not trained on."),
    Metric("detection/end_to_end_spine_mpjpe_mm", "mm", "lower", None, None,
           "MPJPE of the 15 spine keypoints from pictures of four cameras, detected and simulated."),
    Metric("detection/end_to_end_stand_in_spine_mpjpe_mm", "mm", "lower", _SOLVED, None,
           "The same with a stand-in for the detector: the truth with a detector's errors."),
    Metric("detection/mixing_auc_gain", "1", "higher", None, 0.0,
           "AUC on the second domain of a training that is half of it over one without it; a small study."),
)  # fmt: skip


def _workloads_of(model: str) -> tuple[Workload, ...]:
    key, speeds = f"detection/{model}", ("images_per_s", "vs_onnxruntime", "vs_pytorch")
    return (
        Workload((f"{key}/params_m",), _models("parameters", model=model)),
        Workload((f"{key}/parity_rel",), _models("parity", model=model)),
        Workload(tuple(f"{key}/{name}" for name in speeds), _models("speeds", model=model)),
        Workload((f"{key}/overfit_auc",), _training("overfit", model=model)),
    )


# Errors of the trained detector come after its training, which their workload then finds.
WORKLOADS = (
    *(workload for model in MODELS for workload in _workloads_of(model)),
    Workload(("detection/augment_crops_per_s",), _training("augmentation")),
    Workload(("detection/train_images_per_s/spinepose_s",), _training("training")),
    Workload(("detection/spinepose_s/synthetic_auc",), _training("trained")),
    Workload(("detection/end_to_end_stand_in_spine_mpjpe_mm",), _training("end_to_end_stand_in")),
    Workload(("detection/end_to_end_spine_mpjpe_mm",), _training("end_to_end")),
    Workload(("detection/mixing_auc_gain",), late("detection_mixing", "mixing")),
)

SUITE = Suite("detection", METRICS, WORKLOADS, late("workplace", "Workplace"))
