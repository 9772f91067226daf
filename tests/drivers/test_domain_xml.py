"""Definitions as domain XML: what comes out, that libvirt's own schema takes it, and that no
text in a definition becomes anything but text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from tests.drivers.conformance import ODD_NAMES
from vagoth.definition import Kind, VMDefinition, convert
from vagoth.drivers.base import GuestSpec
from vagoth.drivers.libvirt.capabilities import Capabilities, read_capabilities
from vagoth.drivers.libvirt.xml import NAMESPACE, check_spec, domain_xml, mac_for
from vagoth.errors import InvalidInput

GOLDEN = Path(__file__).parent / "golden"
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
UUID = "6b0b1fd6-3d3c-4d8e-9f43-0c7f7a3d2c11"

WITH_KVM = Capabilities(
    "x86_64",
    "c0ffee00-0000-4000-8000-000000000001",
    {"qemu": "/usr/bin/qemu-system-x86_64", "kvm": "/usr/bin/qemu-system-x86_64"},
)
EMULATES = Capabilities("x86_64", "", {"qemu": "/usr/bin/qemu-system-x86_64"})
ON_ARM = Capabilities("aarch64", "", {"kvm": "/usr/bin/qemu-system-aarch64"})
SIMULATED = Capabilities("i686", "", {"test": "/usr/bin/test-hv"})

CASES: dict[str, tuple[dict[str, Any], Capabilities]] = {
    "smallest": ({"memory": "512MiB"}, WITH_KVM),
    "emulated": ({"memory": "512MiB", "kind": "qemu"}, EMULATES),
    "simulated": ({"memory": 64, "kind": "qemu"}, SIMULATED),
    "arm": ({"memory": "1GiB", "vcpus": 2}, ON_ARM),
    "kernel": (
        {
            "memory": "96MiB",
            "kind": "qemu",
            "boot": {
                "kernel": "/boot/vmlinuz",
                "initrd": "/boot/initrd",
                "cmdline": 'console=ttyS0 root=LABEL="a & b" -- <init>',
            },
        },
        EMULATES,
    ),
    "disks_and_nics": (
        {
            "memory": "2GiB",
            "vcpus": 4,
            "boot": "network",
            "disks": [
                {"pool": "default", "volume": "web1.qcow2", "format": "qcow2"},
                {"path": "/srv/data & more.raw", "bus": "scsi"},
                {"path": "/dev/vg0/web1", "bus": "sata", "readonly": True},
                {"path": "/srv/third.raw"},
            ],
            "nics": [
                {"network": "lan", "mac": "52:54:00:12:34:56"},
                {"bridge": "br0", "model": "e1000"},
            ],
        },
        WITH_KVM,
    ),
    "overlay": (
        {
            "memory": "1GiB",
            "xml": """
                <domain xmlns:v="urn:vagoth:node:1">
                  <!-- dropped -->
                  <title>Kept &amp; shown</title>
                  <vcpu placement="static" current="1">8</vcpu>
                  <cpu mode="host-passthrough" v:overlay="replace"/>
                  <features><acpi/><hyperv><relaxed state="on"/></hyperv></features>
                  <on_crash>preserve</on_crash>
                  <devices>
                    <memballoon model="none"/>
                    <serial type="pty"><target port="1"/></serial>
                    <hostdev mode="subsystem" type="pci" managed="yes">
                      <source><address domain="0" bus="6" slot="0" function="0"/></source>
                    </hostdev>
                  </devices>
                </domain>
            """,
        },
        WITH_KVM,
    ),
}


def make(definition: dict[str, Any], name: str = "web1", uuid: str = UUID) -> GuestSpec:
    return GuestSpec(uuid, name, "node00000001", convert(definition, VMDefinition))


def parsed(spec: GuestSpec, capabilities: Capabilities = WITH_KVM) -> Any:
    return etree.fromstring(domain_xml(spec, capabilities))


def laid_over(fragment: str) -> Any:
    return parsed(make({"memory": 512, "xml": fragment}))


@pytest.mark.parametrize("case", CASES)
def test_the_xml_is_as_on_record(case: str) -> None:
    """A change of it changes guests that are: it should be seen in review.

    ``GOLDEN=write pytest tests/drivers/test_domain_xml.py`` writes the record anew.
    """
    definition, capabilities = CASES[case]
    xml = domain_xml(make(definition), capabilities) + "\n"
    path = GOLDEN / f"{case}.xml"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(xml)
    assert xml == path.read_text()


@pytest.mark.skipif(not SCHEMA.exists(), reason="libvirt's schema is not installed here")
@pytest.mark.parametrize("case", CASES)
def test_libvirts_schema_takes_it(case: str) -> None:
    definition, capabilities = CASES[case]
    schema = etree.RelaxNG(etree.parse(SCHEMA))
    schema.assertValid(parsed(make(definition), capabilities))


@pytest.mark.parametrize("case", CASES)
def test_the_same_definition_gives_the_same_xml(case: str) -> None:
    definition, capabilities = CASES[case]
    first, second = (domain_xml(make(definition), capabilities) for _ in range(2))
    assert first == second


# --- text stays text ------------------------------------------------------------------

ANY_TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), min_size=1
)


@given(ANY_TEXT)
def test_any_text_comes_back_as_it_was(text: str) -> None:
    definition = {"memory": 64, "boot": {"kernel": f"/{text}", "cmdline": text}}
    domain = parsed(make(definition, name=text))
    assert domain.findtext("name") == text
    assert domain.findtext("os/kernel") == f"/{text}"
    assert domain.findtext("os/cmdline") == text
    assert domain.find("devices/serial/log").get("file").endswith(f"/{text}-serial.log")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_add_no_element(name: str) -> None:
    plain = [element.tag for element in parsed(make({"memory": 64})).iter()]
    assert [element.tag for element in parsed(make({"memory": 64}, name=name)).iter()] == plain


# --- what a host can run ----------------------------------------------------------------


def test_a_kind_that_the_host_does_not_run_is_refused_with_a_way_out() -> None:
    with pytest.raises(InvalidInput) as refused:
        domain_xml(make({"memory": 64}), EMULATES)
    assert (refused.value.field, refused.value.value) == ("kind", "kvm")
    assert "kind=qemu" in refused.value.cure


def test_a_container_is_refused_before_any_host_is_asked() -> None:
    with pytest.raises(InvalidInput) as refused:
        check_spec(make({"memory": 64, "kind": "lxc"}))
    assert (refused.value.field, refused.value.value) == ("kind", "lxc")


def test_capabilities_are_those_of_the_hosts_own_architecture() -> None:
    read = read_capabilities(
        """
        <capabilities>
          <host><uuid>c0ffee00-0000-4000-8000-000000000001</uuid><cpu><arch>x86_64</arch></cpu></host>
          <guest><os_type>hvm</os_type><arch name="i686">
            <emulator>/usr/bin/qemu-system-i386</emulator><domain type="qemu"/>
          </arch></guest>
          <guest><os_type>hvm</os_type><arch name="x86_64">
            <emulator>/usr/bin/qemu-system-x86_64</emulator>
            <domain type="qemu"/>
            <domain type="kvm"><emulator>/usr/bin/kvm</emulator></domain>
          </arch></guest>
          <guest><os_type>exe</os_type><arch name="x86_64"><domain type="lxc"/></arch></guest>
        </capabilities>
        """
    )
    assert read.arch == "x86_64"
    assert read.host_uuid == "c0ffee00-0000-4000-8000-000000000001"
    assert read.emulators == {"qemu": "/usr/bin/qemu-system-x86_64", "kvm": "/usr/bin/kvm"}
    assert read.kinds == (Kind.KVM, Kind.QEMU)


def test_cards_without_a_mac_get_one_that_stays() -> None:
    assert mac_for(UUID, 0) == mac_for(UUID, 0)
    assert len({mac_for(UUID, index) for index in range(100)}) == 100
    assert not int(mac_for(UUID, 0)[:2], 16) & 1


def test_the_28th_disk_has_the_kernels_name() -> None:
    disks = [{"path": f"/srv/{index}.raw"} for index in range(28)]
    names = [t.get("dev") for t in parsed(make({"memory": 64, "disks": disks})).iter("target")]
    assert names[25:28] == ["vdz", "vdaa", "vdab"]


def test_the_node_is_named_in_the_metadata() -> None:
    node = parsed(make({"memory": 64})).find(f"metadata/{{{NAMESPACE}}}node")
    assert node.get("id") == "node00000001"


# --- the user's own XML ---------------------------------------------------------------


def test_an_element_is_merged_into_the_first_of_its_name() -> None:
    domain = laid_over('<domain><clock offset="localtime" basis="utc"/></domain>')
    assert [dict(clock.attrib) for clock in domain.findall("clock")] == [
        {"offset": "localtime", "basis": "utc"}
    ]


def test_a_second_element_of_a_name_is_added() -> None:
    domain = laid_over('<domain><os><boot dev="cdrom"/><boot dev="network"/></os></domain>')
    assert [boot.get("dev") for boot in domain.findall("os/boot")] == ["cdrom", "network"]


def test_devices_are_added_and_the_only_ones_of_their_kind_merged() -> None:
    domain = laid_over(
        "<domain><devices><emulator>/opt/qemu</emulator>"
        '<rng model="virtio"><backend model="random">/dev/random</backend></rng>'
        '<memballoon model="none"/></devices></domain>'
    )
    devices = domain.find("devices")
    assert [e.text for e in devices.findall("emulator")] == ["/opt/qemu"]
    assert len(devices.findall("rng")) == 2
    assert [b.get("model") for b in devices.findall("memballoon")] == ["none"]


def test_an_element_can_take_the_place_of_another() -> None:
    domain = laid_over(
        '<domain xmlns:v="urn:vagoth:node:1">'
        '<features v:overlay="replace"><pae/></features></domain>'
    )
    assert [child.tag for child in domain.find("features")] == ["pae"]
    assert "overlay" not in etree.tostring(domain).decode()


def test_an_element_of_another_namespace_is_kept() -> None:
    domain = laid_over(
        '<domain xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0"><qemu:commandline>'
        '<qemu:arg value="-foo"/><qemu:arg value="bar"/></qemu:commandline></domain>'
    )
    qemu = "{http://libvirt.org/schemas/domain/qemu/1.0}"
    args = domain.findall(f"{qemu}commandline/{qemu}arg")
    assert [arg.get("value") for arg in args] == ["-foo", "bar"]


@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        ("<domain>", "well-formed"),
        ("", "well-formed"),
        ("plain text", "well-formed"),
        ("<network/>", "root is <domain>"),
        ("<domain><name>other</name></domain>", "without <name>"),
        ("<domain><uuid>1</uuid></domain>", "without <uuid>"),
        ("<!DOCTYPE domain><domain/>", "document type"),
        ('<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><domain>&x;</domain>', "type"),
        ("<domain><title>&unknown;</title></domain>", "well-formed"),
        ('<?xml version="1.0" encoding="utf-16"?><domain/>', "well-formed"),
    ],
)
def test_a_fragment_that_cannot_be_laid_over_is_refused(fragment: str, expected: str) -> None:
    with pytest.raises(InvalidInput, match=expected) as refused:
        check_spec(make({"memory": 64, "xml": fragment}))
    assert refused.value.field == "xml"


def test_entities_do_not_multiply() -> None:
    """A kilobyte that expands to gigabytes is refused at once."""
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(10))
    bomb = f'<!DOCTYPE d [<!ENTITY e0 "ha">{entities}]><domain><title>&e10;</title></domain>'
    with pytest.raises(InvalidInput):
        check_spec(make({"memory": 64, "xml": bomb}))
