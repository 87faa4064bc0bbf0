"""Low-rank adapters (Hu et al. 2021) by peft: small matrices learn beside the frozen encoder's, and are merged at the end.

What leaves is an ordinary encoder: same names, same shapes, same graph. The adapters are put into the body where its linear
layers stand, so that whatever walks through the body meets the layers that it knows.
"""

from torch import nn

from pigeonhole.errors import ConfigError
from pigeonhole.training.model import TextClassifier

# The projections of attention, by family: BERT and RoBERTa; DistilBERT; ModernBERT; DeBERTa, and from its second form on; MPNet.
ATTENTION = (
    *("query", "key", "value"),
    *("q_lin", "k_lin", "v_lin"),
    "Wqkv",
    "in_proj",
    *("query_proj", "key_proj", "value_proj"),
    *("q", "k", "v"),
)


def require_attention(model: TextClassifier, rank: int) -> list[str]:
    """The names of the linear layers that get adapters. Raises ConfigError for a body that has none of them."""
    names = {name.rpartition(".")[2] for name, module in model.body.named_modules() if isinstance(module, nn.Linear)}
    targets = [name for name in ATTENTION if name in names]
    if not targets:
        raise ConfigError(
            f"trainer.lora_rank={rank}: {type(model.body).__name__} has none of the linear layers that get adapters, "
            f"{', '.join(ATTENTION)}; it has {', '.join(sorted(names)) or 'none'}; "
            "leave trainer.lora_rank at 0, or choose another encoder"
        )
    return targets


def add_adapters(model: TextClassifier, rank: int, alpha: int, dropout: float) -> None:
    """From here on only adapters and head learn. The body is one that `require_attention` takes."""
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import, for this alone

    targets = require_attention(model, rank)
    model.body.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets), model.body)


def merge_adapters(model: TextClassifier) -> None:
    """Add what the adapters learned to the encoder's own weights, and take them out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.body.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            model.body.set_submodule(name, layer.get_base_layer())
