from __future__ import annotations

from pathlib import Path

import pytest

from xenpvd import check
from xenpvd.config import GuestConfig
from xenpvd.errors import BadConfig, ImageError, Unsupported


@pytest.fixture(autouse=True)
def kvm_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fine:
        def close(self) -> None: ...

    monkeypatch.setattr(check, "System", Fine)
    monkeypatch.setattr(check, "probe", lambda system: 0x1FF)


def found(definition: GuestConfig, **changes: object) -> dict[str, str]:
    data = definition.model_dump() | changes
    return dict(check.problems(GuestConfig.model_validate(data)))


def test_a_good_definition_has_no_problems_and_nothing_stays_locked(definition: GuestConfig) -> None:
    assert found(definition) == {}
    assert found(definition) == {}


def test_every_problem_at_once_with_its_toml_path(definition: GuestConfig, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    problems = found(
        definition,
        kernel=str(tmp_path),
        ramdisk=nowhere,
        memory=1 << 20,
        shim={"path": str(tmp_path / "kernel")},
        disk=[{"vdev": "xvda", "target": nowhere}, {"vdev": "xvdb", "target": str(tmp_path)}],
    )
    assert list(problems) == ["shim.path", "kernel", "ramdisk", "memory", "disk.0.target", "disk.1.target"]
    assert "not an ELF file" in problems["shim.path"] and "this host has" in problems["memory"]
    assert nowhere in problems["ramdisk"] and nowhere in problems["disk.0.target"]


def test_the_host_is_looked_at_too(definition: GuestConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(system: object) -> int:
        raise Unsupported("no Xen support here", feature="KVM_CAP_XEN_HVM")

    monkeypatch.setattr(check, "probe", refuse)
    assert found(definition) == {"(host)": "no Xen support here"}


def test_memory_that_leaves_no_room_for_the_kernel(definition: GuestConfig, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(40 << 20))
    problems = found(definition, kernel=str(tmp_path / "big"), memory=128)
    assert "Set memory = " in problems["memory"]
    with pytest.raises(BadConfig):
        check.load_image(definition.model_copy(update={"kernel": str(tmp_path / "big")}))


def test_load_image_reads_what_the_shim_needs(definition: GuestConfig) -> None:
    image = check.load_image(
        definition.model_copy(update={"shim": definition.shim.model_copy(update={"extra": "noreboot"})})
    )
    assert image.shim_cmdline == "pv-shim console=xen noreboot"
    assert (image.kernel, image.ramdisk, image.cmdline) == (b"kernel", None, "console=hvc0")
    with pytest.raises(ImageError):
        check.load_image(definition.model_copy(update={"kernel": "/nowhere/at/all"}))
