"""The fine-tuned rtmpose_m of the paper's Table 2; see `finetuning` for what is published and what assumed.

simspine train rtmpose_m_ft --weights W --set data.source=FILE.json:FOLDER data.second=h36m:FRAMES:RELEASE
"""

from simspine_jax.training.finetuning import finetuning

RUN = finetuning("rtmpose_m")
