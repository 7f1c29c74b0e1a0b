//! What comes before the first result: loading a profile, and planning. Goals: planning alone in less than 2 us; loading and
//! planning in less than 50 us after the first use, when `Setup::global` has the profile, and planning is all there is.
//! The others are what a process pays once.

use std::hint::black_box;

use regard::{Align, Attention, Level, Plan, Problem, Setup, View, kernel_set};
use regard_benches::criterion;
use regard_kernels::table::kernels;
use regard_profile::{
    Class, Confidence, Config, Entry, Family, Machine, MaskClass, Profile, Run, Tool, default_path, load, save,
};

/// As many entries as a full tuning run makes, each with a choice of this level.
fn profile(machine: &Machine, level: Level) -> Profile {
    let kernel = &kernels(level)[0];
    let config = Config::new(kernel.name, 192, 8 * kernel.tile.rows);
    let families = [Family::Exponential, Family::Selection, Family::Pointwise, Family::Normalised];
    let entries = (0..60).map(|i| Entry {
        class: Class {
            isa: level.isa().name().to_owned(),
            dtype: "f32".to_owned(),
            family: families[i / 15],
            mask: if i % 2 == 0 { MaskClass::Full } else { MaskClass::Banded },
            head_dim: [64, 128, 256][i % 3],
            value_dim: [64, 128, 256][i % 3],
            keys: 128 << (i % 5),
            queries: 128 << (i % 5),
        },
        config: config.clone(),
        gflops: 100.0 + i as f64 / 3.0,
        fraction_of_peak: 0.9,
        ratio_to_model: 0.97,
        ratio_interval: Some([0.96, 0.98]),
        samples: 60,
        runner_up: None,
        rivals: Vec::new(),
        why: "faster than the model's pick: +3.1 % in a run-off of 24 rounds, interval +2.6 to +3.5 %".to_owned(),
    });
    let entries = entries.collect();
    let tool = Tool {
        name: "benches".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernels_fingerprint: kernel_set().fingerprint,
    };
    let run = Run { unix_time: 0, seconds: 60.0, mode: "full".to_owned(), confidence: Confidence::High, notes: vec![] };
    Profile { entries, ..Profile::new(tool, machine.clone(), run) }
}

fn main() {
    let level = Level::best();
    let machine = Machine::detect();
    let kernels = kernel_set();
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = directory.path().join("profile.json");
    let made = profile(&machine, level);
    save(&path, &made).expect("the directory can be written to");
    let setup = |profile: Option<Profile>| Setup { level, machine: machine.clone(), profile: profile.map(Into::into) };

    let rows = vec![0.5; 8 * 512 * 128];
    let view = View::bhsd(&rows, [1, 8, 512, 128]).expect("as long as its shape");
    let options = Attention::softmax().causal(Align::BottomRight);
    let problem = Problem::new(&options, view, view, view).expect("valid");

    let mut criterion = criterion();
    let mut group = criterion.benchmark_group("planning");
    let [untuned, tuned] = [setup(None), setup(Some(made))];
    group.bench_function("plan/model", |bench| bench.iter(|| Plan::new(black_box(&problem), &untuned)));
    group.bench_function("plan/profile", |bench| bench.iter(|| Plan::new(black_box(&problem), &tuned)));
    let read = || load(black_box(&path), &machine, &kernels).expect("it was saved");
    group.bench_function("load", |bench| bench.iter(read));
    group.bench_function("load and plan", |bench| {
        let mut setup = untuned.clone();
        bench.iter(|| {
            setup.profile = Some(read().into());
            Plan::new(black_box(&problem), &setup)
        });
    });
    group.bench_function("machine", |bench| bench.iter(Machine::detect));
    group.bench_function("path", |bench| bench.iter(|| default_path(&machine)));
    group.finish();
    criterion.final_summary();
}
