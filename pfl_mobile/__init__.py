"""On-device personalization: a frozen PyTorch backbone, small trainable modules, training programs for phones.

    from pfl_mobile import Deployment, LoRA, Plan, TokenTask, personalize

The names are in ``__init__.pyi``, where type checkers and editors read them, each loaded when first used: a part of the
package needs only its own dependencies.
"""

import warnings

import lazy_loader

# PyTorch says this at import, of a setting that nobody made and of hardware that is not there.
warnings.filterwarnings(
    "ignore", "TF32 acceleration on top of oneDNN is available for Intel GPUs", UserWarning
)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
