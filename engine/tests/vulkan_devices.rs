//! What the program says about devices: the list, choosing one, and what it does when there is none to choose.

mod vulkan_support;

use engine::backend::vulkan::{DeviceKind, Vulkan, VulkanError, best_real_gpu, devices};
use vulkan_support::software_device;

#[test]
fn the_software_device_is_listed_usable_and_never_taken_for_a_gpu() {
    let index: usize = software_device().parse().expect("an index");
    let all = devices().expect("devices");
    let lavapipe = &all[index];
    assert!(lavapipe.is_cpu() && lavapipe.is_usable(), "{lavapipe:?}");
    assert!(lavapipe.memory_bytes > 0 && lavapipe.subgroup_size >= 4, "{lavapipe:?}");
    assert!(lavapipe.api_version >= (1, 3, 0) && !lavapipe.driver.is_empty(), "{lavapipe:?}");
    let best = best_real_gpu().expect("an answer");
    assert!(best.is_none_or(|gpu| gpu.kind != DeviceKind::Cpu));
}

#[test]
fn a_device_is_chosen_by_index_or_part_of_its_name() {
    let by_index = Vulkan::new(Some(&software_device()), false).expect("by index");
    let name = by_index.info().name.clone();
    let by_name = Vulkan::new(Some(&name[..5].to_uppercase()), false).expect("by name");
    assert_eq!(by_name.info().name, name);
}

#[test]
fn an_unknown_device_is_an_error_that_lists_the_known_ones() {
    let Err(error) = Vulkan::new(Some("no such device"), false) else { panic!("there is no such device") };
    assert!(matches!(&error, VulkanError::NoSuchDevice { available, .. } if !available.is_empty()), "{error}");
    let text = error.to_string();
    assert!(text.contains("no such device") && text.contains("llvmpipe"), "{text}");
}

/// Set in the process that sees no driver: the loader reads its environment when it starts.
const CHILD: &str = "AIMO_ENGINE_TEST_NO_DRIVER";

#[test]
fn a_machine_without_a_driver_has_no_gpu_and_is_told_what_to_install() {
    if std::env::var_os(CHILD).is_some() {
        let error = devices().expect_err("there is no driver");
        assert!(matches!(error, VulkanError::NoDevice), "{error}");
        assert!(error.to_string().contains("mesa-vulkan-drivers"), "{error}");
        assert_eq!(best_real_gpu().expect("no GPU is no error"), None);
        assert!(matches!(Vulkan::new(None, false), Err(VulkanError::NoDevice)));
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", "a_machine_without_a_driver_has_no_gpu_and_is_told_what_to_install"])
        .env(CHILD, "1")
        .env("VK_DRIVER_FILES", "/nonexistent.json")
        .env("VK_ICD_FILENAMES", "/nonexistent.json")
        .output()
        .expect("this program starts again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
