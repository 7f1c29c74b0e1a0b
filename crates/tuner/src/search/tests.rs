use regard_profile::{Family, load, save};

use super::*;

fn small() -> Vec<Anchor> {
    let anchor = Anchor { family: Family::Exponential, causal: false, head_dim: 16, queries: 40, keys: 70, heads: 1 };
    vec![anchor, Anchor { causal: true, head_dim: 24, ..anchor }, Anchor { family: Family::Selection, ..anchor }]
}

/// Enough for all of these classes, also in an emulator.
const SECONDS: f64 = if cfg!(target_arch = "aarch64") { 30.0 } else { 2.0 };

#[test]
fn a_search_makes_a_profile_that_loads() {
    let machine = Machine::detect();
    let directory = tempfile::tempdir().unwrap();
    for level in Level::available() {
        let mut said = Vec::new();
        let mut progress = |progress: Progress<'_>| said.push((progress.fraction, progress.what.to_owned()));
        let profile = Search::new(*level, &machine, Effort::Quick).anchors(small()).seconds(SECONDS).run(&mut progress);
        println!("{profile:#?}");
        assert!(said.is_sorted_by(|a, b| a.0 <= b.0), "{said:?}");
        assert_eq!(said.last().unwrap().0, 1.0);
        assert!(!profile.run.notes.iter().any(|note| note.contains("is out")), "{:?}", profile.run.notes);
        let key_block = profile.entries[0].config.key_block;
        for entry in &profile.entries {
            assert_eq!(entry.class.isa, level.isa().name());
            assert_eq!(entry.config.key_block, key_block);
            assert!(entry.samples > 0 && entry.gflops > 0.0 && entry.ratio_to_model > 0.0);
        }
        let measured = profile.measured.as_ref().unwrap();
        assert_eq!(measured.fma_gflops.len(), Level::available().len());
        let path = directory.path().join(format!("{}.json", level.isa()));
        save(&path, &profile).unwrap();
        assert_eq!(load(&path, &machine, &kernel_set()).unwrap(), profile);
    }
}

#[test]
fn without_time_there_is_an_empty_profile() {
    let machine = Machine::default();
    let search = Search::new(Level::best(), &machine, Effort::Quick).anchors(small()).seconds(0.0);
    let profile = search.run(&mut |_| ());
    assert_eq!(profile.entries, []);
    assert_eq!(profile.run.confidence, Confidence::Low);
    assert!(profile.run.notes.iter().any(|note| note.contains("0 of 3 classes")), "{:?}", profile.run.notes);
}

#[test]
fn shares_of_the_time() {
    let clock = Clock { start: Instant::now(), seconds: 1e6 };
    let share = clock.share(0.5, 4).unwrap();
    assert!((124e3..=125e3).contains(&share), "{share}");
    let late = Clock { seconds: 1e-9, ..clock };
    assert!(late.share(1.0, 1).is_none());
}
