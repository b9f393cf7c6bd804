//! A virtual machine for a rehearsal, as arguments of QEMU.
//!
//! Invariants: it has no network card, no folder and no device of this machine, it may
//! start no process, and nothing is written into its images: writes go to temporary files
//! that QEMU has unlinked already.

use std::path::PathBuf;

/// What starts the boot loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firmware {
    Bios,
    /// Its code, and a copy of the empty variables beside the images.
    Uefi {
        code: PathBuf,
        variables: String,
    },
}

/// One disk; its file lies in the directory that QEMU runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub file: String,
    /// The engine's word: virtio, virtio_scsi, ide, sata.
    pub interface: Option<String>,
    pub bootable: bool,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub firmware: Firmware,
    /// The newer chipset.
    pub q35: bool,
    /// The processor's own virtualisation; otherwise it is emulated.
    pub kvm: bool,
    pub memory_mib: u64,
    pub disks: Vec<Disk>,
}

/// Where QEMU listens for its monitor, in the directory that it runs in.
pub const MONITOR: &str = "qmp.sock";

impl Machine {
    /// The arguments; the serial console is on standard output.
    pub fn arguments(&self) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        let mut add = |name: &str, value: String| args.extend([name.to_owned(), value]);
        add("-machine", if self.q35 { "q35".into() } else { "pc".into() });
        add("-accel", if self.kvm { "kvm".into() } else { "tcg".into() });
        add("-cpu", "max".into());
        add("-m", format!("{}M", self.memory_mib));
        add("-nic", "none".into());
        add("-display", "none".into());
        add("-vga", "std".into());
        add("-device", "virtio-rng-pci".into());
        add(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into(),
        );
        add("-chardev", "stdio,id=console,signal=off".into());
        add("-serial", "chardev:console".into());
        add("-qmp", format!("unix:{MONITOR},server=on,wait=off"));
        if let Firmware::Uefi { code, variables } = &self.firmware {
            // QEMU ends an option's value at a comma unless it is doubled.
            let code = code.display().to_string().replace(',', ",,");
            add("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={code}"));
            add("-drive", format!("if=pflash,unit=1,format=raw,file={variables}"));
        }
        let (mut scsi, mut sata, mut ide) = (false, 0, 0);
        let any = self.disks.iter().any(|disk| disk.bootable);
        let mut order = 1;
        for (number, disk) in self.disks.iter().enumerate() {
            let drive = format!("file={},format=qcow2,if=none,id=disk{number}", disk.file);
            add("-drive", format!("{drive},snapshot=on"));
            let mut device = match (disk.interface.as_deref(), self.q35) {
                (Some("ide"), false) if ide < 4 => {
                    ide += 1;
                    format!("ide-hd,bus=ide.{},unit={}", (ide - 1) / 2, (ide - 1) % 2)
                }
                (Some("ide" | "sata"), true) if sata < 6 => {
                    sata += 1;
                    format!("ide-hd,bus=ide.{}", sata - 1)
                }
                (Some("sata"), false) if sata < 6 => {
                    if sata == 0 {
                        add("-device", "ahci,id=sata".into());
                    }
                    sata += 1;
                    format!("ide-hd,bus=sata.{}", sata - 1)
                }
                (None | Some("virtio"), _) => "virtio-blk-pci".into(),
                // Also disks for which a controller has no place.
                _ => {
                    if !scsi {
                        add("-device", "virtio-scsi-pci,id=scsi".into());
                    }
                    scsi = true;
                    "scsi-hd,bus=scsi.0".into()
                }
            };
            device += &format!(",drive=disk{number}");
            // The one that the engine boots, or all in their order when it names none.
            if disk.bootable || !any {
                device += &format!(",bootindex={order}");
                order += 1;
            }
            add("-device", device);
        }
        // Words without a value.
        let alone = ["-nodefaults", "-no-user-config", "-no-reboot"];
        args.extend(alone.map(str::to_owned));
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(q35: bool, disks: &[(&str, bool)]) -> String {
        let disk = |(at, (interface, bootable)): (usize, &(&str, bool))| Disk {
            file: format!("disk{at}.qcow2"),
            interface: (!interface.is_empty()).then(|| (*interface).to_owned()),
            bootable: *bootable,
        };
        let disks = disks.iter().enumerate().map(disk).collect();
        let firmware = Firmware::Bios;
        Machine { firmware, q35, kvm: false, memory_mib: 512, disks }.arguments().join(" ")
    }

    #[test]
    fn every_interface_has_its_device_and_the_bootable_disk_comes_first() {
        for (q35, disks, wanted) in [
            (false, &[("virtio", true)][..], "virtio-blk-pci,drive=disk0,bootindex=1"),
            (false, &[("", false), ("", true)], "virtio-blk-pci,drive=disk1,bootindex=1"),
            (false, &[("ide", true)], "ide-hd,bus=ide.0,unit=0,drive=disk0,bootindex=1"),
            (true, &[("ide", true)], "ide-hd,bus=ide.0,drive=disk0,bootindex=1"),
            (false, &[("sata", true)], "-device ahci,id=sata"),
            (true, &[("virtio_scsi", true)], "scsi-hd,bus=scsi.0,drive=disk0,bootindex=1"),
            (false, &[("virtio", false); 2], "virtio-blk-pci,drive=disk1,bootindex=2"),
        ] {
            let args = machine(q35, disks);
            assert!(args.contains(wanted), "{wanted}: {args}");
        }
        let many = machine(false, &[("ide", false); 6]);
        assert_eq!(many.matches("ide-hd").count(), 4, "{many}");
        assert_eq!(many.matches("virtio-scsi-pci").count(), 1, "{many}");
    }

    #[test]
    fn nothing_of_production_can_be_reached() {
        let args = machine(true, &[("virtio", true), ("virtio", false)]);
        for word in ["-nic none", "-nodefaults", "-no-user-config", "spawn=deny"] {
            assert!(args.contains(word), "{word}: {args}");
        }
        assert_eq!(args.matches("snapshot=on").count(), 2, "{args}");
        for word in ["netdev", "virtfs", "fsdev", "hostfwd", "usb-host", "vfio"] {
            assert!(!args.contains(word), "{word}: {args}");
        }
    }
}
