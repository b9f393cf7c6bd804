#!/usr/bin/env python3
"""oVirt's official Python SDK against the simulated engine.

    scripts/sdk-venv.sh
    cargo build -p hvbak-sim
    target/sdk-venv/bin/python3 tests/sdk/test_sdk.py

Starts a lab of its own, prints one line per check and at the end `N passed, N failed`;
the exit status is 0 when nothing failed. HVBAK_LAB names another hvbak-lab.

The SDK knows nothing of hvbak, so what passes here is an engine as others understand it.
Contents are compared by qemu-img, not by the lab.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

import ovirtsdk4 as sdk
import ovirtsdk4.types as types

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAB = os.environ.get("HVBAK_LAB", str(ROOT / "target/debug/hvbak-lab"))
MIB = 1 << 20
PATIENCE = 60

passed = failed = 0


def check(what, ok, seen=""):
    """One line per check; `seen` is shown when it fails."""
    global passed, failed
    if ok:
        passed += 1
        print(f"ok      {what}", flush=True)
    else:
        failed += 1
        print(f"FAILED  {what}: {seen}", flush=True)


def equal(what, seen, wanted):
    check(what, seen == wanted, f"{seen!r}, not {wanted!r}")


def raises(what, code, text, call, kind=sdk.Error):
    """The call must fail with this text and this HTTP code (None: before any answer)."""
    try:
        call()
    except kind as error:
        check(what, error.code == code and text in str(error), f"{error.code} {error}")
    else:
        check(what, False, "it succeeded")


def wait(what, condition):
    """Waits for a condition; its failure is an exception, since nothing after it makes sense."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError(what)


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command} failed: {done.stdout}{done.stderr}")
    return done.stdout


def same(*images):
    """qemu-img compare of (format, path) pairs."""
    (f1, one), (f2, two) = images
    command = ["qemu-img", "compare", "-U", "-f", f1, "-F", f2, str(one), str(two)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


class Lab:
    """A lab of this test, stopped at the end whatever happens."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="hvbak-sdk-")

    def __enter__(self):
        try:
            up = run(LAB, "up", "--dir", self.dir, "--hosts", "1", "--detach")
        except BaseException:
            self.__exit__()
            raise
        self.about = json.loads(up)
        return self

    def __exit__(self, *_):
        subprocess.run([LAB, "down", "--dir", self.dir], capture_output=True)
        shutil.rmtree(self.dir, ignore_errors=True)

    def path(self, name):
        return pathlib.Path(self.dir) / name

    def guest(self, verb, vm, disk, *more):
        return run(LAB, verb, "--dir", self.dir, "--vm", vm, "--disk", disk, *more)

    def write(self, vm, disk, offset, length, pattern):
        where = ("--offset", offset, "--length", length)
        self.guest("guest-write", vm, disk, *where, "--pattern", pattern)

    def locate(self, vm, disk):
        return json.loads(self.guest("locate", vm, disk))

    def volume(self, vm, disk, volume):
        """Format and path of a volume, by what is on the storage."""
        top = pathlib.Path(self.locate(vm, disk)["paths"][0])
        meta = (top.parent / f"{volume}.meta").read_text()
        return ("raw" if "FORMAT=RAW" in meta else "qcow2"), top.parent / volume

    def flatten(self, vm, disk, volume, name):
        """What a volume with its backing chain holds, as a raw image."""
        form, path = self.volume(vm, disk, volume)
        run("qemu-img", "convert", "-U", "-f", form, "-O", "raw", path, self.path(name))
        return "raw", self.path(name)

    def password(self):
        return pathlib.Path(self.about["password_file"]).read_text().strip()

    def connect(self, password=None):
        return sdk.Connection(
            url=self.about["engine_url"],
            username=self.about["username"],
            password=password or self.password(),
            ca_file=self.about["ca_file"],
        )


def gone(service):
    try:
        service.get()
    except sdk.NotFoundError:
        return True
    return False


class Story:
    """One VM's life, in the order of the methods called by `main`."""

    def __init__(self, lab, connection):
        self.lab = lab
        self.system = connection.system_service()
        self.vms = self.system.vms_service()
        self.disks = {}

    # -- inventory ---------------------------------------------------------

    def inventory(self):
        api = self.system.get()
        equal("API root: major version", api.product_info.version.major, 4)
        check("API root: instance id", bool(api.product_info.instance_id))
        names = [v.name for v in self.vms.list()]
        check("list VMs", {"web1", "db1", "thin1"} <= set(names), names)
        found = [v.name for v in self.vms.list(search="name=WEB1")]
        equal("search by name is not case sensitive", found, ["web1"])
        found = sorted(v.name for v in self.vms.list(search="name=*1 and status=down"))
        equal("search with a wildcard and a status", found, ["db1", "thin1"])
        found = [v.name for v in self.vms.list(search="tag=gold")]
        equal("search by tag", found, ["web1"])
        pages = [
            [v.name for v in self.vms.list(search=f"sortby name asc page {n}", max=2)]
            for n in (1, 2, 3)
        ]
        equal("pages of two", pages, [["db1", "thin1"], ["web1"], []])
        raises(
            "a malformed search is a 400", 400, "", lambda: self.vms.list(search="colour=blue")
        )
        web = self.vms.list(search="name=web1")[0]
        equal("web1 runs", web.status, types.VmStatus.UP)
        inlined = self.vms.list(search="name=web1", follow="disk_attachments.disk,nics")[0]
        aliases = sorted(a.disk.alias for a in inlined.disk_attachments)
        equal("follow inlines disks", aliases, ["web1_Disk1", "web1_data"])
        equal("follow inlines NICs", len(inlined.nics), 1)
        host = self.system.hosts_service().list()[0]
        equal("host is up", host.status, types.HostStatus.UP)
        check("host tells its SSH key", host.ssh.public_key.startswith("ssh-rsa "), host.ssh)
        check("host tells its SSH port", host.ssh.port == self.lab.about["hosts"][0]["port"])
        domains = self.system.storage_domains_service().list()
        equal("domains have no status at the root", {d.status for d in domains}, {None})
        center = self.system.data_centers_service().list(search="name=Default")[0]
        center = self.system.data_centers_service().data_center_service(center.id)
        attached = center.storage_domains_service().list()
        states = {(d.name, d.status) for d in attached}
        active = types.StorageDomainStatus.ACTIVE
        equal("domains of a data center have one", states, {("nfs1", active), ("gluster1", active)})
        equal("one master domain", [d.master for d in attached].count(True), 1)
        equal("search templates", [
            t.name for t in self.system.templates_service().list(search="name=base")
        ], ["base"])
        check("list clusters", [c.name for c in self.system.clusters_service().list()] == ["Default"])
        check("list networks", [n.name for n in self.system.networks_service().list()] == ["ovirtmgmt"])
        self.profile = self.system.vnic_profiles_service().list()[0]

    # -- disks, VM, attachments, NIC, tag ----------------------------------

    def create_disk(self, alias, form, sparse, domain):
        made = self.system.disks_service().add(
            types.Disk(
                name=alias,
                format=form,
                sparse=sparse,
                provisioned_size=64 * MIB,
                storage_domains=[types.StorageDomain(name=domain)],
            )
        )
        service = self.system.disks_service().disk_service(made.id)
        wait(f"disk {alias}", lambda: service.get().status == types.DiskStatus.OK)
        disk = service.get()
        equal(f"disk {alias}: format", disk.format, form)
        equal(f"disk {alias}: size", disk.provisioned_size, 64 * MIB)
        self.disks[alias] = disk.id
        return disk

    def create(self):
        self.create_disk("sdk_raw", types.DiskFormat.RAW, True, "nfs1")
        self.create_disk("sdk_cow", types.DiskFormat.COW, True, "gluster1")
        vm = self.vms.add(
            types.Vm(
                name="sdkvm",
                cluster=types.Cluster(name="Default"),
                template=types.Template(name="Blank"),
                memory=1 << 30,
            )
        )
        self.vm = self.vms.vm_service(vm.id)
        wait("the VM is down", lambda: self.vm.get().status == types.VmStatus.DOWN)
        check("the VM exists", self.vm.get().name == "sdkvm")
        attachments = self.vm.disk_attachments_service()
        for alias, disk in self.disks.items():
            attachments.add(
                types.DiskAttachment(
                    disk=types.Disk(id=disk),
                    interface=types.DiskInterface.VIRTIO_SCSI,
                    bootable=alias == "sdk_raw",
                    active=True,
                )
            )
        listed = {a.disk.id: a.bootable for a in attachments.list()}
        wanted = {self.disks["sdk_raw"]: True, self.disks["sdk_cow"]: False}
        equal("attachments", listed, wanted)
        nic = self.vm.nics_service().add(
            types.Nic(
                name="nic1",
                interface=types.NicInterface.VIRTIO,
                vnic_profile=types.VnicProfile(id=self.profile.id),
            )
        )
        check("the NIC got a MAC", nic.mac.address.count(":") == 5, nic.mac.address)
        tags = self.system.tags_service()
        tag = tags.add(types.Tag(name="sdk"))
        self.tag = tags.tag_service(tag.id)
        self.vm.tags_service().add(types.Tag(name="sdk"))
        equal("tag", [t.name for t in self.vm.tags_service().list()], ["sdk"])
        ovf = self.vm.get(all_content=True).initialization.configuration
        equal("all_content brings an OVF", ovf.type, types.ConfigurationType.OVF)
        check("the OVF names the disks", all(d in ovf.data for d in self.disks.values()))

    # -- errors ------------------------------------------------------------

    def errors(self):
        nobody = "11111111-2222-3333-4444-555555555555"
        raises("unknown VM: 404", 404, "", lambda: self.vms.vm_service(nobody).get(),
               sdk.NotFoundError)
        unknown = self.vm.snapshots_service().snapshot_service(nobody)
        raises("unknown snapshot: 404", 404, "", unknown.remove, sdk.NotFoundError)
        raises("malformed id: 400", 400, "", lambda: self.vms.vm_service("web1").get())
        again = types.Vm(
            name="sdkvm",
            cluster=types.Cluster(name="Default"),
            template=types.Template(name="Blank"),
        )
        raises("VM name in use: 409", 409, "already in use", lambda: self.vms.add(again))
        bare = types.Vm(name="nowhere")
        raises("VM without cluster: 400", 400, "Incomplete parameters", lambda: self.vms.add(bare))
        attach = types.DiskAttachment(
            disk=types.Disk(id=self.disks["sdk_raw"]),
            interface=types.DiskInterface.VIRTIO,
            active=True,
        )
        other = self.vms.vm_service(self.vms.list(search="name=db1")[0].id)
        raises("disk attached elsewhere: 409", 409, "already attached",
               lambda: other.disk_attachments_service().add(attach))
        raises("tag name in use: 409", 409, "already in use",
               lambda: self.system.tags_service().add(types.Tag(name="sdk")))
        bare = types.Snapshot(persist_memorystate=False)
        raises("snapshot without description: 400", 400, "Incomplete parameters",
               lambda: self.vm.snapshots_service().add(bare))
        refused = self.lab.connect(password="wrong")
        raises("wrong password", None, "access_denied", refused.authenticate, sdk.AuthError)
        refused.close()
        web = self.vms.vm_service(self.vms.list(search="name=web1")[0].id)
        raises("a running VM is not removed: 409", 409, "running", web.remove)
        raises("a VM that runs is not started: 409", 409, "running", web.start)
        strange = sdk.Connection(
            url=self.lab.about["engine_url"],
            username="admin@internal",
            password=self.lab.password(),
            ca_file="/etc/ssl/certs/ca-certificates.crt",
        )
        raises("another CA is not trusted", None, "", strange.authenticate)
        strange.close()

    # -- snapshots ---------------------------------------------------------

    def active(self):
        listed = self.vm.snapshots_service().list()
        return [s for s in listed if s.snapshot_type == types.SnapshotType.ACTIVE][0].id

    def snapshot(self, description):
        before = self.active()
        service = self.vm.snapshots_service()
        made = service.add(types.Snapshot(description=description, persist_memorystate=False))
        equal(f"{description}: has the id that Active had", made.id, before)
        check(f"{description}: Active has a new id", self.active() != before)
        one = service.snapshot_service(made.id)
        wait(description, lambda: one.get().snapshot_status == types.SnapshotStatus.OK)
        return made.id

    def volumes(self, snapshot):
        """Disk id to volume id of a snapshot."""
        service = self.vm.snapshots_service().snapshot_service(snapshot)
        return {d.id: d.image_id for d in service.disks_service().list()}

    def tops(self):
        service = self.system.disks_service()
        return {d: service.disk_service(d).get().image_id for d in self.disks.values()}

    def write_everywhere(self, offset, length, pattern):
        for alias in self.disks:
            self.lab.write("sdkvm", alias, offset, length, pattern)

    def merge(self, what, first):
        """Snapshots `first` and a second with different contents; `first` is deleted."""
        owned_first = self.volumes(first)
        # Overwrites a part of what the first holds, beside new clusters.
        self.write_everywhere(3 * MIB, 2 * MIB + 4096, 0x22)
        second = self.snapshot(f"{what} second")
        owned_second = self.volumes(second)
        check(f"{what}: the second owns other volumes",
              all(owned_second[d] != owned_first[d] for d in owned_first))
        self.write_everywhere(4 * MIB, 8 * MIB, 0x33)
        before = {}
        for alias, disk in self.disks.items():
            volume = owned_second[disk]
            held = self.lab.flatten("sdkvm", alias, volume, f"{alias}.second")
            now = self.lab.path(f"{alias}.now")
            self.lab.guest("guest-read", "sdkvm", alias, "--output", now)
            before[alias] = (held, ("raw", now), self.lab.volume("sdkvm", alias, volume)[1])
        tops = self.tops()
        one = self.vm.snapshots_service().snapshot_service(first)
        one.remove()
        wait(f"{what}: deletion", lambda: gone(one))
        equal(f"{what}: the second owns the first's volumes", self.volumes(second), owned_first)
        equal(f"{what}: the active volumes stay", self.tops(), tops)
        for alias, (held, now, child) in before.items():
            survivor = self.lab.volume("sdkvm", alias, owned_first[self.disks[alias]])
            ok, text = same(survivor, held)
            check(f"{what}: {alias}: the survivor holds what the second held", ok, text)
            check(f"{what}: {alias}: the child's file is gone", not child.exists(), child)
            after = self.lab.path(f"{alias}.after")
            self.lab.guest("guest-read", "sdkvm", alias, "--output", after)
            ok, text = same(("raw", after), now)
            check(f"{what}: {alias}: the guest sees the same", ok, text)
            chain = self.lab.locate("sdkvm", alias)["chain"]
            equal(f"{what}: {alias}: chain", chain, [tops[self.disks[alias]], owned_first[self.disks[alias]]])
        return second

    def merge_last(self, what, last):
        """The only snapshot goes: its volume survives as the active one."""
        owned = self.volumes(last)
        now = {}
        for alias in self.disks:
            now[alias] = self.lab.path(f"{alias}.now")
            self.lab.guest("guest-read", "sdkvm", alias, "--output", now[alias])
        one = self.vm.snapshots_service().snapshot_service(last)
        one.remove()
        wait(f"{what}: deletion", lambda: gone(one))
        equal(f"{what}: its volumes are the active ones", self.tops(), owned)
        for alias in self.disks:
            self.lab.guest("guest-read", "sdkvm", alias, "--output", self.lab.path("after"))
            ok, text = same(("raw", self.lab.path("after")), ("raw", now[alias]))
            check(f"{what}: {alias}: the guest sees the same", ok, text)
        raw = self.system.disks_service().disk_service(self.disks["sdk_raw"]).get()
        equal(f"{what}: the raw disk is raw again", raw.format, types.DiskFormat.RAW)

    def cold(self):
        self.write_everywhere(MIB, 4 * MIB, 0x11)
        first = self.snapshot("cold first")
        second = self.merge("cold", first)
        self.merge_last("cold last", second)

    def live(self):
        self.write_everywhere(MIB, 4 * MIB, 0x44)
        first = self.snapshot("live first")
        second = self.merge("live", first)
        self.write_everywhere(20 * MIB, MIB, 0x55)
        self.merge_last("live last", second)

    def start(self):
        self.vm.start()
        wait("up", lambda: self.vm.get().status == types.VmStatus.UP)
        check("the VM runs on the host", self.vm.get().host is not None)
        for alias in self.disks:
            check(f"{alias}: is open over NBD", self.lab.locate("sdkvm", alias)["live"])
        in_use = self.system.disks_service().disk_service(self.disks["sdk_raw"])
        raises("a disk of a running VM is not removed: 409", 409, "", in_use.remove)

    def stop(self):
        self.vm.stop()
        wait("down", lambda: self.vm.get().status == types.VmStatus.DOWN)
        check("a stopped VM has no host", self.vm.get().host is None)

    def preview(self):
        """A VM in preview takes no snapshot and gives none away."""
        shot = self.snapshot("for preview")
        self.vm.preview_snapshot(snapshot=types.Snapshot(id=shot), restore_memory=False)
        service = self.vm.snapshots_service()
        one = service.snapshot_service(shot)
        wait("preview", lambda: one.get().snapshot_status == types.SnapshotStatus.IN_PREVIEW)
        kinds = {s.snapshot_type for s in service.list()}
        check("preview: there is an entry of that type", types.SnapshotType.PREVIEW in kinds, kinds)
        new = types.Snapshot(description="no", persist_memorystate=False)
        raises("preview: no snapshot: 409", 409, "previewing a Snapshot", lambda: service.add(new))
        raises("preview: no deletion: 409", 409, "previewing a Snapshot", one.remove)
        self.vm.undo_snapshot()
        wait("undo", lambda: one.get().snapshot_status == types.SnapshotStatus.OK)
        one.remove()
        wait("deletion", lambda: gone(one))

    def suspended(self):
        """A suspended VM: the simulator refuses snapshots, the safe side of an open question."""
        self.vm.start()
        wait("up", lambda: self.vm.get().status == types.VmStatus.UP)
        self.vm.suspend()
        wait("suspended", lambda: self.vm.get().status == types.VmStatus.SUSPENDED)
        new = types.Snapshot(description="no", persist_memorystate=False)
        raises("suspended: no snapshot: 409", 409, "because the VM is in Suspended status",
               lambda: self.vm.snapshots_service().add(new))
        self.stop()

    def hot_plug(self):
        self.vm.start()
        wait("up", lambda: self.vm.get().status == types.VmStatus.UP)
        service = self.vm.disk_attachments_service().attachment_service(self.disks["sdk_cow"])
        raises("a plugged disk of a running VM is not detached: 409", 409, "", service.remove)
        service.update(types.DiskAttachment(active=False))
        equal("unplugged", service.get().active, False)
        service.update(types.DiskAttachment(active=True))
        self.lab.write("sdkvm", "sdk_cow", 0, MIB, 0x66)
        equal("plugged again and written to", service.get().active, True)
        self.stop()

    # -- events, removal ---------------------------------------------------

    def events(self):
        service = self.system.events_service()
        events = service.list(search=f"event_vm_id={self.vm.get().id}")
        codes = {e.code for e in events}
        check("events of snapshots", {45, 68, 342, 356} <= codes, codes)
        ids = [int(e.id) for e in events]
        check("newest first", ids == sorted(ids, reverse=True), ids)
        equal("max", len(service.list(max=3)), 3)
        top = max(int(e.id) for e in service.list())
        mine = types.Event(
            description="from the SDK", severity=types.LogSeverity.WARNING, origin="sdk", custom_id=7
        )
        added = service.add(mine)
        equal("an event of ours", (added.code, added.origin, added.custom_id), (9802, "sdk", 7))
        equal("events from an id on", [e.description for e in service.list(from_=top)], ["from the SDK"])
        raises("the same event again: 400", 400, "", lambda: service.add(mine))
        header = {"Correlation-Id": "sdk-correlation"}
        snapshot = types.Snapshot(description="correlated", persist_memorystate=False)
        made = self.vm.snapshots_service().add(snapshot, headers=header)
        one = self.vm.snapshots_service().snapshot_service(made.id)
        wait("snapshot", lambda: one.get().snapshot_status == types.SnapshotStatus.OK)
        found = service.list(search="correlation_id=sdk-correlation")
        equal("events by correlation id", {e.code for e in found}, {45, 68})
        one.remove()
        wait("deletion", lambda: gone(one))

    def thin(self):
        """A VM of a template: an overlay over the template's volume."""
        vm = self.vms.add(
            types.Vm(
                name="sdkthin",
                cluster=types.Cluster(name="Default"),
                template=types.Template(name="base"),
            )
        )
        service = self.vms.vm_service(vm.id)
        wait("thin VM", lambda: service.get().status == types.VmStatus.DOWN)
        disk = service.disk_attachments_service().list()[0].disk.id
        chain = self.lab.locate("sdkthin", disk)["chain"]
        equal("thin VM: overlay and template volume", len(chain), 2)
        raises("thin VM: disks stay with it: 409", 409, "template", lambda: service.remove(detach_only=True))
        service.remove()
        wait("thin VM removed", lambda: gone(service))
        left = self.system.disks_service().disk_service(disk)
        wait("its disk removed", lambda: gone(left))
        check("thin VM is removed with its disk", True)

    def template(self):
        """A template of a VM that is down: its disks are copies, flat and shared."""
        service = self.system.templates_service()
        new = types.Template(name="sdktemplate", description="made", vm=types.Vm(name="sdkvm"))
        running = types.Template(name="no", vm=types.Vm(name="web1"))
        raises("template of a running VM: 409", 409, "Down state", lambda: service.add(running))
        made = service.add(new)
        one = service.template_service(made.id)
        equal("a new template is locked", made.status, types.TemplateStatus.LOCKED)
        raises("a locked template is not removed: 409", 409, "locked", one.remove)
        raises("template name in use: 409", 409, "", lambda: service.add(new))
        wait("template", lambda: one.get().status == types.TemplateStatus.OK)
        wait("its VM is down again", lambda: self.vm.get().status == types.VmStatus.DOWN)
        equal("template: description", one.get().description, "made")
        equal("template: NICs", [n.name for n in one.nics_service().list()], ["nic1"])
        check("template: no OVF", one.get().initialization is None)
        disks = [a.disk.id for a in one.disk_attachments_service().list()]
        check("template: disks of its own", len(disks) == 2 and not set(disks) & set(self.disks.values()))
        leaf = self.vms.add(types.Vm(
            name="sdkleaf",
            cluster=types.Cluster(name="Default"),
            template=types.Template(id=made.id),
        ))
        leaf = self.vms.vm_service(leaf.id)
        wait("a VM of it", lambda: leaf.get().status == types.VmStatus.DOWN)
        for attached in leaf.disk_attachments_service().list(follow="disk"):
            alias = "sdk_raw" if attached.bootable else "sdk_cow"
            now, like = self.lab.path("leaf"), self.lab.path("like")
            self.lab.guest("guest-read", "sdkleaf", attached.disk.id, "--output", now)
            self.lab.guest("guest-read", "sdkvm", alias, "--output", like)
            ok, text = same(("raw", now), ("raw", like))
            check(f"{alias}: a VM of the template sees the same", ok, text)
        raises("a template with VMs is not removed: 409", 409, "sdkleaf", one.remove)
        leaf.remove()
        wait("the VM removed", lambda: gone(leaf))
        one.remove()
        wait("the template removed", lambda: gone(one))
        left = [self.system.disks_service().disk_service(d) for d in disks]
        check("its disks are removed with it", all(gone(d) for d in left))

    def remove(self):
        nic = self.vm.nics_service().list()[0]
        self.vm.nics_service().nic_service(nic.id).remove()
        equal("NIC removed", self.vm.nics_service().list(), [])
        cow = self.disks["sdk_cow"]
        folder = pathlib.Path(self.lab.locate("sdkvm", "sdk_cow")["paths"][0]).parent
        self.vm.disk_attachments_service().attachment_service(cow).remove()
        service = self.system.disks_service().disk_service(cow)
        check("a detached disk stays", service.get().id == cow)
        service.remove()
        wait("disk removed", lambda: gone(service))
        check("a removed disk is gone from the storage", not folder.exists(), folder)
        raw = self.system.disks_service().disk_service(self.disks["sdk_raw"])
        self.vm.remove()
        wait("VM removed", lambda: gone(self.vm))
        wait("its disk removed", lambda: gone(raw))
        check("a removed VM takes its disks along", True)
        self.tag.remove()
        check("tag removed", "sdk" not in [t.name for t in self.system.tags_service().list()])


def main():
    with Lab() as lab, lab.connect() as connection:
        check("connects with the CA", connection.test(raise_exception=True))
        story = Story(lab, connection)
        chapters = ["inventory", "create", "errors", "cold", "start", "live", "stop", "preview",
                    "suspended", "hot_plug", "events", "thin", "template", "remove"]
        for chapter in chapters:
            print(f"-- {chapter.replace('_', ' ')}", flush=True)
            try:
                getattr(story, chapter)()
            except Exception as error:  # pylint: disable=broad-except
                check(f"{chapter} comes to its end", False, repr(error))
                traceback.print_exc()
                break
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
