"""The systems by name. A new system is one folder here and one line in `SYSTEMS`."""

import importlib

from mtld_core.config import check, nearest

SYSTEMS = {  # name -> "module:class", imported when asked for
    "mtld": "mtld_core.systems.mtld.system:MTLD",
    "tinydreams": "mtld_core.systems.tinydreams.system:TinyDreams",
    "tokenizer": "mtld_core.systems.world_model.tokenizer:Tokenizer",
    "latent_actions": "mtld_core.systems.world_model.latent_actions:LatentActions",
    "dynamics": "mtld_core.systems.world_model.dynamics:Dynamics",
    "weight_rnn": "mtld_core.systems.weight_rnn.system:WeightRNN",
    "rl_v2v": "mtld_core.systems.rl_v2v.system:RLV2V",
}


def system_class(name):
    """The `System` subclass called `name`. Raises UserError with the nearest known name."""
    check(name in SYSTEMS, f"there is no system {name!r}{nearest(name, SYSTEMS)}")
    module, cls = SYSTEMS[name].split(":")
    return getattr(importlib.import_module(module), cls)
