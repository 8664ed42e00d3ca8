"""Published files of weights: fetched once, and checked against the SHA-256 of their publisher."""

import hashlib
import os
import re
import socket
from pathlib import Path

import torch
from filelock import FileLock  # torch requires it
from mmengine.logging import print_log

from ..errors import WeightsError
from .reading import read


def sha256_in_name(url: str) -> str:
    """The first digits of a file's SHA-256, where its name ends in them; else ''.

    This is torch.hub's convention: ``convnext_tiny-983f1562.pth``. A date is not taken for digits.
    """
    match = re.search(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$', url.partition('?')[0])
    return match[1] if match else ''


def fetch(source: str, sha256: str = '') -> Path:
    """Where a published file lies on this machine; fetched first if it is not there.

    Args:
        source: URL, kept in torch.hub's folder; or repository of the Hugging Face hub, whose
            ``model.safetensors`` is kept in the hub's own cache.
        sha256: first digits of the file's SHA-256; default: those in its name, if there are any.

    Raises:
        WeightsError: the file cannot be fetched (the message says where to put it by hand), or
            its SHA-256 is another.
    """
    sha256 = sha256 or sha256_in_name(source)
    is_url = source.startswith(('http://', 'https://'))
    url = source if is_url else f'https://huggingface.co/{source}/resolve/main/model.safetensors'
    # The name holds a hash of the whole source: many hosts serve a file of the same name.
    basename = source.partition('?')[0].rpartition('/')[2][-100:]
    name = f'{hashlib.sha256(source.encode()).hexdigest()[:8]}-{basename}'
    place = Path(torch.hub.get_dir(), 'checkpoints', name if is_url else f'{name}.safetensors')
    path = place
    if not is_url and not place.is_file():
        path = _in_hub_cache(source) or place
    if not path.is_file():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f'{place}.lock'):  # the processes of a distributed run share a download
                if not place.is_file():
                    print_log(f'fetching {url}', logger='current')
                    path = _download(url, place, sha256) if is_url else _from_hub(source)
        except Exception as error:  # of urllib, requests or the hub; a wrong hash is a RuntimeError
            raise WeightsError(
                f'could not fetch {url}: {error or type(error).__name__}\n'
                f'Fetch it elsewhere and put it at {place}, or name a local file as checkpoint; '
                'init_cfg=None trains from random weights.'
            ) from None
    if sha256:
        _check(path, sha256)
    return path


def sha256_of(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check(path: Path, sha256: str) -> None:
    digits = sha256_of(path)[: len(sha256)]
    if digits != sha256:
        raise WeightsError(
            f'{path} is damaged: its SHA-256 starts {digits}, published is {sha256}. '
            'Delete it to fetch it again'
        )


def _download(url: str, path: Path, sha256: str) -> Path:
    """To ``path``, or raise: torch.hub does not notice a connection that was cut short."""
    unfinished = path.with_name(f'{path.name}.unfinished')
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # seconds without a byte
    try:
        torch.hub.download_url_to_file(url, str(unfinished), sha256 or None)
        read(unfinished)
        os.replace(unfinished, path)
    finally:
        socket.setdefaulttimeout(timeout)
        unfinished.unlink(missing_ok=True)
    return path


def _in_hub_cache(repository: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:
        return None
    cached = try_to_load_from_cache(repository, 'model.safetensors')
    return Path(cached) if isinstance(cached, str) else None


def _from_hub(repository: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError:
        raise WeightsError(
            'the package huggingface_hub is missing: pip install "convnext_dense[hub]"'
        ) from None
    return Path(hf_hub_download(repository, 'model.safetensors'))  # goes on where it was cut short
