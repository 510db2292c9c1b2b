#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| {
    stepflow_load_balancer_fuzz::events::run(octets);
});
