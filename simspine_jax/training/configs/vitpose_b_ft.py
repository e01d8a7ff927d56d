"""The fine-tuned vitpose_b of the paper's Table 2; see `finetuning` for what is published and what assumed.

simspine train vitpose_b_ft --weights W --set data.source=FILE.json:FOLDER data.second=h36m:FRAMES:RELEASE
"""

from simspine_jax.training.finetuning import finetuning

RUN = finetuning("vitpose_b")
