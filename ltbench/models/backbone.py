from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import attrgetter
from typing import Any

import timm
from torch import Tensor, nn

from ltbench.config.adapters import Adapters
from ltbench.config.network import check_args
from ltbench.config.validation import find_mistakes
from ltbench.config.weights import PACKAGES
from ltbench.errors import UserError, did_you_mean
from ltbench.models import BACKBONES
from ltbench.models.adapters import add_adapters
from ltbench.models.loading import Origin, load_weights
from ltbench.models.stages import POOL, POOLING, Stage, stages_of, units, view
from ltbench.remote.hub import offline_unless_reachable


class StageChain(nn.Module):
    """Consecutive stages of a network, run one after the other.

    Args:
        net: the network, or a view of it that holds these stages.
        stages: the stages to run.
    """

    def __init__(self, net: nn.Module, stages: tuple[Stage, ...]) -> None:
        super().__init__()
        self.net = net
        self._stages = stages

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages, first to last."""
        return tuple(stage.name for stage in self._stages)

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Run stages ``start`` to ``stop`` (exclusive) on the input of the first of them."""
        for stage in self._stages[start:stop]:
            x = self.do(stage.steps, x)
        return x

    def do(self, steps: tuple[str, ...], x: Tensor) -> Tensor:
        """Run steps of the network in order."""
        for step in steps:
            x = attrgetter(step)(self.net)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Run all stages."""
        return self.run(x)


class FeatureCache:
    """Cached inputs of a stage, one tensor per forward call, with their graphs."""

    def __init__(self) -> None:
        self.features: list[Tensor] = []
        self._next: int | None = None

    def replay(self) -> None:
        """Make subsequent forward calls start from the stored features, in the order of storage.

        The order starts over after the last one, so that several passes may follow.
        """
        self._next = 0

    def enter(self, chain: StageChain, images: Tensor, start: int) -> Tensor:
        """Return the input of stage ``start``, computed and stored, or replayed."""
        if self._next is None:
            self.features.append(chain.run(images, 0, start))
            return self.features[-1]
        features = self.features[self._next % len(self.features)]
        self._next += 1
        if len(features) != len(images):
            raise RuntimeError(
                f"replayed forward calls must repeat the stored ones: {len(features)} images "
                f"stored, {len(images)} given"
            )
        return features


class Backbone(StageChain):
    """Feature extractor split into named stages: images [B, 3, H, W] to pooled features [B, D].

    Args:
        net: a timm network without classifier; parameter names are timm's, prefixed with ``net.``.
        num_features: number of features D; read from the network if not given.
        stages: stages of the network; those of ``stages_of`` if not given.
    """

    def __init__(
        self,
        net: nn.Module,
        num_features: int | None = None,
        stages: tuple[Stage, ...] | None = None,
    ) -> None:
        super().__init__(net, stages_of(net) if stages is None else stages)
        width: Any = getattr(net, "head_hidden_size", None) or getattr(net, "num_features", None)
        self.num_features: int = width if num_features is None else num_features
        self.pretrained = False  # initialised from given weights
        self.origin: Origin | None = None  # of these weights
        self._cached: tuple[int, FeatureCache] | None = None
        self._given = False  # calls take stored features instead of images

    @classmethod
    def from_stages(
        cls, stages: Mapping[str, nn.Module], num_features: int, pool: nn.Module | None = None
    ) -> Backbone:
        """Create a backbone from modules that are run in order.

        Args:
            stages: modules by name; the last returns [B, D], or feature maps if ``pool`` is given.
            num_features: number of features D.
            pool: pooling of feature maps [B, D, H, W] to [B, D]; part of the last stage.
        """
        if not stages or {"last", "whole", POOL} & set(stages):
            raise ValueError("stages need names, and `last`, `whole` and `pool` have a meaning")
        *cut, last = (Stage(name, (name,)) for name in stages)
        modules = OrderedDict(stages)
        if pool is not None:
            modules[POOL], last = pool, Stage(last.name, (*last.steps, POOL))
        return cls(nn.Sequential(modules), num_features, (*cut, last))

    def maps(self, images: Tensor) -> Tensor:
        """Return the feature maps [B, D, H, W] before pooling.

        Raises:
            UserError: the network has no feature maps.
        """
        if self._given:
            raise UserError(
                "this method needs the feature maps before pooling, which `features: cached` does "
                "not store; leave it out of the stage"
            )
        *before, end = self._stages[-1].steps
        return checked_maps(self.do(tuple(before), self.run(images, 0, len(self._stages) - 1)), end)

    def pool(self, maps: Tensor) -> Tensor:
        """Return the pooled features [B, D] of ``maps``."""
        return self.do(self._stages[-1].steps[-1:], maps)

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Run stages ``start`` to ``stop`` (exclusive), or return given features [B, D]."""
        return x.flatten(1) if self._given else super().run(x, start, stop)

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features [B, D]."""
        if self._cached is None:
            return self.run(images)
        start, cache = self._cached
        return self.run(cache.enter(self, images, start), start)

    def modules_of(self, part: str) -> tuple[nn.Module, ...]:
        """Return the modules of a stage; ``last`` is the last stage, ``whole`` is all stages.

        Raises:
            UserError: there is no such part.
        """
        wanted = self._range(part)
        found = (unit for stage, unit in units(self.net, self._stages) if stage in wanted)
        return tuple(unit for unit in found if isinstance(unit, nn.Module))

    def parameters_of(self, part: str) -> list[nn.Parameter]:
        """Return the parameters of a part, in the order of the network.

        Raises:
            UserError: there is no such part.
        """
        wanted = self._range(part)
        chosen: set[int] = set()
        for stage, unit in units(self.net, self._stages):
            if stage in wanted:
                own = unit.parameters() if isinstance(unit, nn.Module) else [unit]
                chosen.update(id(p) for p in own)
        return [p for p in self.net.parameters() if id(p) in chosen]

    @contextmanager
    def cache_before(self, stage: str) -> Iterator[FeatureCache]:
        """Cache the input of a stage, to run the later stages again without the earlier ones.

        Within the context, forward calls store the input of ``stage`` with its graph until
        ``replay`` of the yielded cache is called; later calls start from the stored inputs.

        Args:
            stage: name of a stage, ``last``, ``whole`` for the images themselves, or ``head`` for
                the output of the backbone.

        Raises:
            UserError: there is no such stage.
        """
        before = self._cached
        cache = FeatureCache()
        start = len(self._stages) if stage == "head" else self._range(stage).start
        self._cached = (start, cache)
        try:
            yield cache
        finally:
            self._cached = before

    @contextmanager
    def given_features(self) -> Iterator[None]:
        """Take features [B, D, 1, 1] in place of images within the context, and return them."""
        before, self._given = self._given, True
        try:
            yield
        finally:
            self._given = before

    def _range(self, part: str) -> range:
        """Return the indices of the stages of a part."""
        names = self.stages
        if part == "whole":
            return range(len(names))
        place = len(names) - 1 if part == "last" else names.index(part) if part in names else -1
        if place < 0 or names == ("whole",):
            kind = type(self.net).__name__
            known = ["whole"] if names == ("whole",) else [*names, "last", "whole"]
            raise UserError(
                f"backbone {kind} has no part `{part}`{did_you_mean(part, known)}; "
                f"it has {', '.join(known)}"
            )
        return range(place, place + 1)


def checked_maps(x: Tensor, end: str) -> Tensor:
    """Return what a network has before its last step, if that is feature maps and pooling.

    Args:
        x: input of the last step.
        end: the last step.

    Raises:
        UserError: it is something else.
    """
    if end not in POOLING or x.dim() != 4:
        raise UserError(
            "this method needs the feature maps before pooling, which the backbone does not "
            "have; take a ResNet"
        )
    return x


def create_backbone(
    name: str,
    *,
    pretrained: bool = False,
    weights: str | None = None,
    adapters: Adapters | Mapping[str, Any] | str | None = None,
    classes: int | None = None,
    **args: Any,
) -> Backbone:
    """Return a backbone by name, with fresh or given weights.

    Args:
        name: a registered backbone, else any timm model name (with or without a weights tag).
        pretrained: load the public weights of that name; needs network access, a cache, or the
            package that they come in.
        weights: initial weights, a classifier among them is ignored: a run's folder, a published
            folder, a ``.safetensors`` or ``.pth`` file, a name of the zoo, or a pinned repository
            on the Hub; see ``ltbench.config.weights.find_source``.
        adapters: trained layers to put into the blocks of a vision transformer: a kind, or options
            of ``ltbench.config.adapters.Adapters``; ``None`` is none.
        classes: number of classes C, on which the default width of adapters depends.
        args: options of the architecture, see ``ltbench.config.network``.

    Raises:
        UserError: the name or an argument is unknown or refused, or the weights are unavailable or
            do not fit.
    """
    try:
        args = {k: v for k, v in check_args(args).items() if k != "in_chans"}
    except ValueError as error:
        raise UserError(f"backbone `{name}`: {error}") from error
    ours = name in BACKBONES
    hub = name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    fetched = hub or (pretrained and name not in PACKAGES)
    if not (ours or hub or timm.is_model(name)):
        names = BACKBONES.names()
        timms = [*timm.list_models(), *timm.list_pretrained()]
        known = [n for n in names if n.startswith(name)] or [*names, *timms]
        raise UserError(
            f"unknown backbone `{name}`{did_you_mean(name, known)}; ours are "
            f"{', '.join(names)}, and timm's names are accepted too"
        )
    try:
        with offline_unless_reachable() if fetched else nullcontext():
            create = BACKBONES.get(name) if ours else partial(timm.create_model, name)
            net = create(pretrained=pretrained, num_classes=0, **args)
    except UserError:
        raise
    except Exception as error:  # errors of the Hub's client have no common base
        cause = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if fetched:
            raise UserError(
                f"public weights of backbone `{name}` could not be loaded ({cause}); they need a "
                "network or a filled cache: check it, or give a file of them as "
                "`backbone.weights=FILE` and leave `backbone.pretrained` out"
            ) from error
        raise UserError(f"backbone `{name}` cannot be built with args {args}: {cause}") from error
    backbone = net if isinstance(net, Backbone) else Backbone(net)
    if adapters is not None:
        add_adapters(backbone.net, _checked(adapters), classes)
    if pretrained or hub or weights is not None:
        backbone.origin = Origin(name, weights, args)
    if weights is not None:
        load_weights(backbone.net, weights)
    backbone.pretrained = pretrained or hub or weights is not None
    return backbone


def _checked(adapters: Adapters | Mapping[str, Any] | str) -> Adapters:
    """Return the options of adapters.

    Raises:
        UserError: there is no such option or value.
    """
    if isinstance(adapters, Adapters):
        return adapters
    given = {"name": adapters} if isinstance(adapters, str) else dict(adapters)
    found, mistakes = find_mistakes(Adapters, given, "backbone.adapters")
    if found is None:
        raise UserError("\n".join(mistakes))
    return found


def split(backbone: Backbone, at: str = "last") -> tuple[nn.Module, nn.Module]:
    """Split a backbone into trunk and tail, with ``tail(trunk(x)) == backbone(x)``.

    Trunk and tail share modules, parameters and parameter names with the backbone;
    ``copy.deepcopy(tail)`` is an independent branch.

    Args:
        backbone: the backbone to split.
        at: first stage of the tail; ``last`` is the last one, ``whole`` leaves the trunk empty.

    Raises:
        UserError: there is no such stage.
    """
    start, stages = backbone._range(at).start, backbone._stages
    first, second = range(start), range(start, len(stages))
    trunk = StageChain(view(backbone.net, stages, first), stages[:start])
    tail = StageChain(view(backbone.net, stages, second), stages[start:])
    return trunk, tail
