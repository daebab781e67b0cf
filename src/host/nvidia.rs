//! What NVIDIA's driver tells of itself and of its GPUs, in the words of its files.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// `[{"model","uuid"}…]`, in the order of their bus addresses; empty without the driver. `uuid` only where it is told: the
/// driver knows it once somebody has used the GPU.
pub(super) fn gpus(listed: &Path) -> Value {
    let mut directories: Vec<_> = fs::read_dir(listed).into_iter().flatten().flatten().map(|one| one.path()).collect();
    directories.sort();
    let told = |dir: &std::path::PathBuf| fs::read_to_string(dir.join("information")).unwrap_or_default();
    directories.iter().map(|dir| gpu(&told(dir))).collect()
}

/// One GPU, from its `information`: lines `Name: <tabs and spaces> value`.
fn gpu(information: &str) -> Value {
    let value = |key: &str| {
        let lines = information.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim()).find(|value| !value.is_empty())
    };
    let mut told = json!({ "model": value("Model").unwrap_or_default() });
    if let Some(uuid) = value("GPU UUID").filter(|uuid| !uuid.contains('?')) {
        told["uuid"] = uuid.into();
    }
    told
}

/// The version in the first line of `version`; none without the driver.
pub(super) fn driver_version(text: &str) -> Option<&str> {
    let is_version = |word: &&str| {
        word.contains('.') && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    text.lines().next()?.strip_prefix("NVRM version:")?.split_whitespace().find(is_version)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const INFORMATION: &str = "Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 217\n\
        GPU UUID: \t GPU-1f2e3d4c-5b6a-7988-0a1b-2c3d4e5f6071\nVideo BIOS: \t 92.00.45.00.03\nBus Type: \t PCIe\n\
        DMA Size: \t 47 bits\nDMA Mask: \t 0x7fffffffffff\nBus Location: \t 0000:07:00.0\nDevice Minor: \t 0\n\
        GPU Firmware: \t 535.104.12\nGPU Excluded:\t No\n";
    /// Of a GPU that nobody has used since the driver was loaded.
    const UNUSED: &str = "Model: \t\t Tesla K80\nIRQ:   \t\t 33\n\
        GPU UUID: \t GPU-????????-????-????-????-????????????\nVideo BIOS: \t ??.??.??.??.??\nBus Type: \t PCIe\n";

    #[test]
    fn a_gpu_is_named_by_model_and_uuid() {
        let uuid = "GPU-1f2e3d4c-5b6a-7988-0a1b-2c3d4e5f6071";
        assert_eq!(gpu(INFORMATION), json!({ "model": "NVIDIA A100-SXM4-40GB", "uuid": uuid }));
        assert_eq!(gpu(UNUSED), json!({ "model": "Tesla K80" }));
        assert_eq!(gpu("Model:\nmodel: x\nno colon"), json!({ "model": "" }));
        assert_eq!(gpu(""), json!({ "model": "" }));
    }

    #[test]
    fn the_drivers_version_stands_among_other_words() {
        for (text, version) in [
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.12  Wed Aug 23 23:52:38 UTC 2023\n\
                 GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n",
                Some("535.104.12"),
            ),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  565.57.01  Release Build  (dvs-builder@U16)  \
                 Thu Oct 10 12:05:50 UTC 2024\nGCC version:  gcc version 12.3.0",
                Some("565.57.01"),
            ),
            ("NVRM version: NVIDIA UNIX aarch64 Kernel Module  470.82  Thu Oct 14 2021", Some("470.82")),
            ("GCC version:  gcc version 11.4.0", None),
            ("NVRM version: unreleased\nGCC version: 1.2", None),
            ("", None),
        ] {
            assert_eq!(driver_version(text), version, "{text}");
        }
    }

    #[test]
    fn gpus_are_listed_by_bus_address() {
        let dir = std::env::temp_dir().join(format!("hb-nvidia-{}", std::process::id()));
        assert_eq!(gpus(&dir), json!([]), "no driver");
        for (address, information) in [("0000:0b:00.0", Some(UNUSED)), ("0000:07:00.0", Some(INFORMATION)), ("x", None)]
        {
            fs::create_dir_all(dir.join(address)).unwrap();
            information.iter().for_each(|text| fs::write(dir.join(address).join("information"), text).unwrap());
        }
        let listed = gpus(&dir);
        fs::remove_dir_all(&dir).unwrap();
        let models: Vec<_> = listed.as_array().unwrap().iter().map(|gpu| gpu["model"].as_str().unwrap()).collect();
        assert_eq!(models, ["NVIDIA A100-SXM4-40GB", "Tesla K80", ""], "one for each, whatever it tells");
    }
}
