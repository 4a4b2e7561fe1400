"""What we add to each of vLLM's workers, one per process of an engine: reading back what lies in its part of the model.
vLLM imports this in every worker, so our other additions are made known there too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollcall.actors.engine import vllm_repairs, vllm_weight_transfer
from rollcall.actors.engine.checkpoint_names import CheckpointNames
from rollcall.actors.engine.markers import Found, Markers, Read
from rollcall.cluster.messages.fingerprints import word_sum

if TYPE_CHECKING:
    from torch import Tensor

vllm_repairs.install()
vllm_weight_transfer.register()


class WorkerExtension:
    """Mixed into vLLM's worker class. Its methods are called in all workers of an engine together."""

    def rollcall_find(self, directory: str, markers: Markers) -> Found:
        """Loads markers in place of the weights, and looks where they came to lie. The model is of no use afterwards,
        until weights are loaded."""
        import torch
        from vllm.config import set_current_vllm_config

        worker: Any = self
        names = CheckpointNames(Path(directory))
        tensors = names.tensors({name: torch.from_numpy(array) for name, array in markers.arrays()})
        model = worker.model_runner.get_model()
        with torch.no_grad(), set_current_vllm_config(worker.vllm_config):
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.zero_()
            reload = vllm_weight_transfer.reload_of(model, worker.model_config)
            model.load_weights(iter(tensors.items()))
            reload.finish()
            self._rollcall_places: list[Tensor] = []  # in each parameter
            all_codes = torch.from_numpy(markers.codes())
            order = all_codes.argsort()
            parameters, codes, sums = [], [], []
            for number, parameter in enumerate(_parameters(model)):
                flat = parameter.data.reshape(-1)
                places = flat.nonzero().view(-1)
                if len(places) > len(all_codes):  # something else than zeros and codes
                    places = places[:0]
                values = flat[places].cpu().float()
                nearest = torch.searchsorted(all_codes[order], values).clamp(max=len(all_codes) - 1)
                found = order[nearest]
                is_code = all_codes[found] == values
                if len(set(found[is_code].tolist())) < int(is_code.sum()):  # a code twice: not what we put there
                    is_code[:] = False
                self._rollcall_places.append(places[is_code.to(places.device)])
                parameters.append(torch.full((int(is_code.sum()),), number))
                codes.append(found[is_code])
                sums.append(word_sum(parameter.data))
        return Found(torch.cat(parameters).numpy(), torch.cat(codes).numpy(), torch.stack(sums).cpu().numpy())

    def rollcall_missing(self) -> list[str]:
        """Parameters that got no weights, in the first load of our transfer engine."""
        worker: Any = self
        return list(worker.weight_transfer_engine.missing)

    def rollcall_read(self) -> Read:
        """What lies at the places that `rollcall_find` found, and the sum of every parameter. A GPU is waited for
        twice, whatever the model."""
        import torch

        worker: Any = self
        values, sums = [], []
        for parameter, places in zip(_parameters(worker.model_runner.get_model()), self._rollcall_places, strict=True):
            values.append(parameter.data.reshape(-1)[places].float())
            sums.append(word_sum(parameter.data))
        return Read(torch.cat(values).cpu().numpy(), torch.stack(sums).cpu().numpy())


def _parameters(model: Any) -> list[Tensor]:
    """Each once, whatever its names."""
    return [parameter for parameter in model.parameters() if parameter.is_floating_point()]
