"""The index of a sharded state on disk, read without executing anything."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from causalfusion.errors import UserError

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size", "device", "float32", "strided", "contiguous_format"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath"},
    "pathlib._local": {"Path", "PosixPath"},
}
"""All that PyTorch's own index is made of."""


class ShareReader(FileSystemReader):
    """PyTorch's reader, with an index that is refused where it holds anything but an index."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = self.folder / ".metadata"
        try:
            with path.open("rb") as file:
                found = _IndexUnpickler(file).load()
        except FileNotFoundError:
            raise UserError(f"{path} is missing") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
        except Exception as error:  # whatever damaged bytes make of it
            raise UserError(f"{path} is no index of a training state ({error})") from None
        if not isinstance(found, Metadata) or not isinstance(found.state_dict_metadata, dict):
            raise UserError(f"{path} is no index of a training state")
        if not isinstance(found.storage_data, dict):
            raise UserError(f"{path} does not say where the tensors lie")
        if found.storage_meta is not None:
            found.storage_meta.load_id = self.load_id
        return found

    def layout(self) -> dict[str, Tensor]:
        """The stored tensors' names, shapes and kinds of numbers, as tensors without memory."""
        stored = self.read_metadata().state_dict_metadata
        tensors = {}
        for name, found in stored.items():
            if not isinstance(found, TensorStorageMetadata) or not isinstance(name, str):
                raise UserError(f"{self.folder / '.metadata'}: {name} is not a tensor")
            try:
                tensors[name] = torch.empty(found.size, dtype=found.properties.dtype, device="meta")
            except (TypeError, RuntimeError, AttributeError) as error:
                raise UserError(f"{self.folder / '.metadata'}: {name} has no shape ({error})") from None
        return tensors


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} has no place there")
        return super().find_class(module, name)
