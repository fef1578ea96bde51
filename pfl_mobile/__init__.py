"""On-device personalization: a frozen PyTorch backbone, small trainable modules, training programs for phones.

    from pfl_mobile import Deployment, LoRA, Plan, TokenTask, personalize

The names are in ``__init__.pyi``, where type checkers and editors read them, each loaded when first used: a part of the
package needs only its own dependencies.

**What is public** is what the ``__all__`` of this package and of those below exports, and the classes of
``pfl_mobile.errors``. Modules inside a package, packages that are not named here, and names that begin with an
underscore are internal: they change without notice.

* ``pfl_mobile.study``: run strategies over many users, and see for whom they pay; ``pfl_mobile.data``: the users.
* ``pfl_mobile.strategies``, ``pfl_mobile.merge``, ``pfl_mobile.privacy``: what a round computes.
* ``pfl_mobile.modules``, ``pfl_mobile.text``: what is trained on a device; ``pfl_mobile.plan``: how.
* ``pfl_mobile.bundle``: what ships; ``pfl_mobile.engines``: what runs it; ``pfl_mobile.device``: a device's part of a
  federation.
"""

import warnings

import lazy_loader

# PyTorch says this at import, of a setting that nobody made and of hardware that is not there.
warnings.filterwarnings(
    "ignore", "TF32 acceleration on top of oneDNN is available for Intel GPUs", UserWarning
)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
