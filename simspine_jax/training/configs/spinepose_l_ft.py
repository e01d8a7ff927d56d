"""The fine-tuned spinepose_l of the paper's Table 2; see `finetuning` for what is published and what assumed.

simspine train spinepose_l_ft --weights W --set data.source=FILE.json:FOLDER data.second=h36m:FRAMES:RELEASE
"""

from simspine_jax.training.finetuning import finetuning

RUN = finetuning("spinepose_l")
