"""Bring the plugin into every Python process of the environment, and cost those that never use LLaMA-Factory nothing.

`llamafactory_embed.pth` imports this module when the interpreter starts: that is the one place that
`llamafactory-cli`, the processes of torchrun, Ray's workers and the children of LLaMA Board have in common. It may use
the standard library only, and little of it: it puts an import hook in place that waits for a few modules of the host
and, right after one of them has been executed, lets the room `llamafactory_embed.host` adjust it.

`LLAMAFACTORY_EMBED_DISABLE=1` leaves everything as it was.
"""

import os
import sys


# host module → the module of `llamafactory_embed.host` whose `apply` adjusts it
SEAMS = {
    "llamafactory.launcher": "launcher",
    "llamafactory.hparams.parser": "options",
    "llamafactory.data.parser": "data",
    "llamafactory.data.template": "templates",
    "llamafactory.model.loader": "families",
    "llamafactory.train.tuner": "dispatch",
    "llamafactory.api.app": "api",
    "llamafactory.chat.hf_engine": "chat",
    "llamafactory.chat.chat_model": "chat",
    "llamafactory.webui.chatter": "chat",
    "lm_eval.models": "lm_eval",
    "llamafactory.webui.interface": "board",
}


HOST = "llamafactory"


def let_idle_threads_sleep():
    """Tell OpenMP, before torch is loaded, that its threads soon sleep between two pieces of work.

    By default they turn in a loop for milliseconds, and keep the core that they wait for from whoever has the work:
    on a machine that is busy with something else, a training step takes many times as long. GNU's OpenMP, torch's on
    Linux, waits for some dozens of microseconds first, which is what lies between two operations. What is set stays.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


class SeamLoader:
    """Loads a host module exactly as its own loader does, then applies our seam to it."""

    def __init__(self, loader, seam):
        self._loader = loader
        self._seam = seam

    def __getattr__(self, name):  # get_source, is_package, resource readers, …
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        from llamafactory_embed.host import apply_seam

        apply_seam(self._seam, module)


class SeamFinder:
    """A meta path entry that recognises the host's modules and leaves finding them to the others."""

    def find_spec(self, name, path=None, target=None):
        if name == HOST:
            let_idle_threads_sleep()
        seam = SEAMS.get(name)
        if seam is None:
            return None

        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = SeamLoader(spec.loader, seam)
                return spec

        return None


def install():
    """Put the finder in front, once a process."""
    if not any(type(finder).__name__ == SeamFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, SeamFinder())


if os.environ.get("LLAMAFACTORY_EMBED_DISABLE", "").lower() not in ("1", "true", "yes", "y"):
    install()
