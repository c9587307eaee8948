"""timm models made from trained methods, under the one architecture ``ltbench_method``.

Importing this registers it; ``import ltbench`` sees to that. Nothing else of ltbench is imported
before a model is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from ltbench.errors import UserError, visible

if TYPE_CHECKING:
    from ltbench.methods.base import Method
    from ltbench.models.backbone import Backbone

ARCHITECTURE = "ltbench_method"
CHANNELS = 3


class TimmMethod(nn.Module):
    """A trained method with the calls that every model of timm answers.

    Its logits are those of ``Method.predict``. It keeps the method's whole state, parts that only
    training needs included, so that loading is strict and training can go on. Its memory format is
    that of training too, on which the last bits of logits depend; to save it as safetensors by
    other means than ``ltbench publish``, bring it to ``torch.contiguous_format`` first.

    Args:
        method: the trained method.
        num_classes: classes C; another number than the method's replaces its classifier.
    """

    pretrained_cfg: dict[str, Any]

    def __init__(self, method: Method, num_classes: int) -> None:
        super().__init__()
        self.method = method
        self.classifier: nn.Module | None = None  # one that took the place of the method's own
        self.num_classes = method.info.num_classes
        self.num_features = self.head_hidden_size = _branches(method) * method.backbone.num_features
        if num_classes != self.num_classes:
            self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """Return the classifier: the method's own, whatever it is, until it is reset."""
        return self.method.head if self.classifier is None else self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh linear one on the features of all branches.

        Args:
            num_classes: classes C; 0 leaves the features as they are.
            global_pool: ``None`` or ``avg``; pooling is part of the trained network.

        Raises:
            UserError: another pooling was asked for.
        """
        if global_pool not in (None, "avg"):
            raise UserError(
                f"`global_pool`: the pooling of a trained method stays as it is, found "
                f"`{global_pool}`; leave it out"
            )
        self.num_classes = num_classes
        like = next(self.method.parameters())
        self.classifier = (
            nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            if num_classes
            else nn.Identity()
        )

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the input of ``forward_head`` for images [B, 3, H, W].

        Returns:
            Of one branch the maps before pooling, [B, D, h, w], or what a network without maps
            has there; of several the pooled features, [B, E, D] or [B, E D].

        Raises:
            UserError: the method's network returns logits only.
        """
        from ltbench.models.branches import ExpertMean
        from ltbench.models.residual import ResLTNetwork, branch_features

        plain = self.method.export()
        if isinstance(plain, ResLTNetwork):
            return branch_features(plain.backbone, plain.head, x, plain.after_pooling)
        if isinstance(plain, ExpertMean):
            features: Tensor = plain.features(x)
            return features
        backbone = _single(plain)
        if backbone is not None:
            last = len(backbone.stages) - 1
            return backbone.do(backbone._stages[last].steps[:-1], backbone.run(x, 0, last))
        for module in _body(plain):
            x = module(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits [B, C], or with ``pre_logits`` features [B, ``num_features``]."""
        backbone = _single(self.method.export())
        if backbone is not None:
            x = backbone.pool(x)
        if pre_logits:
            return x.flatten(1)
        if self.classifier is None:
            return _own_logits(self.method, x)
        logits: Tensor = self.classifier(x.flatten(1))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, C] for images [B, 3, H, W]."""
        if self.classifier is None:
            return self.method.predict(x)
        return self.forward_head(self.forward_features(x))


@register_model
def ltbench_method(
    pretrained: bool = False,
    *,
    pretrained_cfg: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int = CHANNELS,
    features_only: bool = False,
    **args: Any,
) -> nn.Module:
    """Return the method that a published ``config.json`` describes, with its weights if asked for.

    Args:
        pretrained: load the weights; every name, shape and the file's hash must be right.
        pretrained_cfg: of the published model; timm reads it from ``config.json``.
        cache_dir: folder of timm's downloads.
        num_classes: another number than that of the weights puts a fresh linear classifier in
            the place of the trained one, after all weights were loaded.
        in_chans: must be 3.
        features_only: not available.
        args: ``model_args`` of the published model: recipe, data set, class counts; and what
            timm passes on.

    Raises:
        UserError: it does not come from a published model, or an argument is not supported.
    """
    if pretrained_cfg is None or "recipe" not in args:
        raise UserError(
            f"`{ARCHITECTURE}` is built from a published model only; create `hf-hub:ORG/NAME` or "
            "`local-dir:PATH`"
        )
    if features_only or in_chans != CHANNELS:
        wrong = "features_only" if features_only else f"in_chans={in_chans}"
        raise UserError(
            f"`{wrong}` is not available for a trained method; use its backbone, or retrain"
        )
    model = build_model_with_cfg(
        _build,
        ARCHITECTURE,
        False,
        pretrained_cfg=pretrained_cfg,
        names=pretrained_cfg.get("label_names"),
        mean=pretrained_cfg.get("mean"),
        std=pretrained_cfg.get("std"),
        **args,
    )
    if pretrained:
        _load(model, cache_dir)
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
    return model


def _build(
    *,
    recipe: Any,
    names: Any,
    mean: Any,
    std: Any,
    num_classes: Any,
    in_chans: int,
    dataset: Any = None,
    class_counts: Any = None,
    **unknown: Any,
) -> TimmMethod:
    """Build a model for timm's ``build_model_with_cfg``; ``num_classes`` is that of the weights.

    All but ``in_chans`` is content of a ``config.json`` that anybody may have written.
    """
    from ltbench.hub.folder import published_recipe
    from ltbench.methods.build import rebuild

    unknown.pop("global_pool", None)
    if unknown:
        raise UserError(
            f"unknown argument `{next(iter(unknown))}` of `{ARCHITECTURE}`; it takes num_classes"
        )
    if type(num_classes) is not int or num_classes < 0:
        raise UserError(
            f"`{ARCHITECTURE}`: num_classes must be a whole number from 0, found "
            f"`{visible(str(num_classes))}`"
        )
    if not names and isinstance(class_counts, list):
        names = [str(k) for k in range(len(class_counts))]
    facts = {
        "recipe": published_recipe(recipe, ARCHITECTURE),
        "dataset": dataset,
        "class_counts": class_counts,
        "class_names": names,
        "mean": mean,
        "std": std,
    }
    return TimmMethod(rebuild(facts, ARCHITECTURE), num_classes)


def _load(model: TimmMethod, cache_dir: str | Path | None) -> None:
    """Load the weights into a fresh model; what timm alone would let pass is an error here."""
    from ltbench.hub.encoder import with_encoder
    from ltbench.hub.folder import is_ours, read_folder, read_tensors
    from ltbench.methods.weights import load_rebuilt, load_strict
    from ltbench.records.record import WEIGHTS

    cfg = model.pretrained_cfg
    folder = _fetched(cfg, cache_dir)
    origin = str(cfg.get("hf_hub_id") or folder)
    if is_ours(folder):
        tensors, facts = read_folder(folder)
        tensors = with_encoder(tensors, facts, origin)
        load_rebuilt(model.method, tensors, facts, origin)
    else:  # fine-tuned and saved by timm: the names are this module's, and no hash is known
        load_strict(model, read_tensors(folder / WEIGHTS), origin)


def _fetched(cfg: dict[str, Any], cache_dir: str | Path | None) -> Path:
    """Return the folder with the published files, downloaded if need be."""
    from ltbench.hub import zoo
    from ltbench.hub.folder import CONFIG
    from ltbench.records.record import WEIGHTS
    from ltbench.remote import hub as client

    if cfg.get("source") == "local-dir":
        return Path(cfg["file"])
    repository, _, revision = str(cfg["hf_hub_id"]).partition("@")
    if cache_dir is None:
        return zoo.fetch_repository(repository, revision or "main")

    def fetch() -> str:
        from huggingface_hub import snapshot_download

        return snapshot_download(
            repository,
            revision=revision or None,
            cache_dir=cache_dir,
            allow_patterns=[WEIGHTS, CONFIG],
        )

    return Path(client.attempt(f"weights of {repository}", fetch))


def _branches(method: Method) -> int:
    """Return the number of branches whose features the classifier takes."""
    from ltbench.models.residual import BRANCHES, ResLTHead

    if isinstance(method.head, ResLTHead):
        return BRANCHES
    branches = getattr(method, "branches", None)
    return 1 if branches is None else len(branches.copies) + 1


def _own_logits(method: Method, features: Tensor) -> Tensor:
    """Return the logits that ``Method.predict`` makes of pooled features."""
    from ltbench.losses.branches import reslt_normalised_logits
    from ltbench.models.branches import ExpertMean
    from ltbench.models.residual import ResLTNetwork

    plain = method.export()
    if isinstance(plain, ResLTNetwork):
        if plain.gamma is not None:
            return reslt_normalised_logits(features, plain.head.classifier.weight, plain.gamma)
        total: Tensor = plain.head(features).sum(dim=1)
        return total
    if isinstance(plain, ExpertMean):
        mean: Tensor = plain.head(features).mean(dim=1)
        return mean
    logits: Tensor = method.head(features)
    return logits


def _body(plain: nn.Module) -> list[nn.Module]:
    """Return the part of a method's plain network before its classifier."""
    if not isinstance(plain, nn.Sequential):
        raise UserError("this method's network returns logits only; there are no features to take")
    return list(plain)[:-1]


def _single(plain: nn.Module) -> Backbone | None:
    """Return the backbone if it is all that comes before the classifier, and ends with pooling."""
    from ltbench.models.backbone import Backbone
    from ltbench.models.stages import POOLING

    first = plain[0] if isinstance(plain, nn.Sequential) and len(plain) == 2 else None
    if isinstance(first, Backbone) and first._stages[-1].steps[-1] in POOLING:
        return first
    return None
