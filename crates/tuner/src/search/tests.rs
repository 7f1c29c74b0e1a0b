use regard_kernels::tensor::Dtype;
use regard_profile::{Family, load, save};

use super::*;

fn small() -> Vec<Anchor> {
    let anchor = Anchor {
        role: Role::Lanes,
        family: Family::Exponential,
        causal: false,
        dtype: Dtype::F32,
        head_dim: 16,
        queries: 40,
        keys: 70,
        heads: 1,
        group: 1,
        streams: false,
    };
    let rows = Anchor { role: Role::Rows, queries: 1, ..anchor };
    vec![
        anchor,
        Anchor { causal: true, head_dim: 24, ..anchor },
        Anchor { family: Family::Selection, ..anchor },
        rows,
        Anchor { dtype: Dtype::Bf16, ..rows },
        Anchor { role: Role::Crossing, queries: 16, ..anchor },
    ]
}

/// Enough for all of these classes, also on a busy machine and in an emulator; where it is not, tests take more.
const SECONDS: f64 = if cfg!(target_arch = "aarch64") { 25.0 } else { 12.0 };

fn search(level: Level, machine: &Machine) -> Search<'_> {
    Search::new(level, machine, Effort::Quick).anchors(small()).seconds(SECONDS)
}

#[test]
fn a_search_makes_a_profile_that_loads() {
    let machine = Machine::detect();
    let directory = tempfile::tempdir().unwrap();
    for level in Level::available() {
        // On a busy machine even the ceilings may take all of the time.
        let (said, found) = [1.0, 5.0, 25.0]
            .into_iter()
            .map(|times| {
                let mut said = Vec::new();
                let mut progress = |progress: Progress<'_>| said.push((progress.fraction, progress.what.to_owned()));
                let found = search(*level, &machine).seconds(times * SECONDS).run(&mut progress);
                (said, found)
            })
            .find(|(_, found)| !found.profile.entries.is_empty())
            .expect("there is time for a class");
        let profile = found.profile;
        println!("{profile:#?}");
        assert!(said.is_sorted_by(|a, b| a.0 <= b.0), "{said:?}");
        assert_eq!(said.last().unwrap().0, 1.0);
        assert!(!profile.run.notes.iter().any(|note| note.contains("is out")), "{:?}", profile.run.notes);
        // On a busy machine the time may not be enough for all of them.
        assert_eq!(found.complete, profile.entries.len() == 5);
        for entry in &profile.entries {
            assert_eq!(entry.class.isa, level.isa().name());
            assert!(entry.samples > 0 && entry.gflops > 0.0 && entry.ratio_to_model > 0.0);
            // The story of the winner is told.
            let told = |trials: &&Trials| trials.class == entry.class && trials.role != Role::Crossing;
            let trials = found.trials.iter().filter(told).flat_map(|trials| &trials.trials);
            assert!(trials.into_iter().any(|trial| trial.fate == Fate::Won && trial.config == entry.config));
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
    let found = search(Level::best(), &machine).seconds(0.0).run(&mut |_| ());
    assert_eq!(found.profile.entries, []);
    assert!(!found.complete);
    let run = &found.profile.run;
    assert_eq!(run.confidence, Confidence::Low);
    assert!(run.notes.iter().any(|note| note.contains("0 of 5 classes")), "{:?}", run.notes);
}

#[test]
fn a_search_that_is_stopped_goes_on_later() {
    let machine = Machine::detect();
    let stop = AtomicBool::new(false);
    let level = Level::best();
    // After the second class of lanes has begun.
    let mut begun = 0;
    let mut progress = |progress: Progress<'_>| {
        begun += usize::from(progress.leader.is_none() && progress.what.starts_with(level.isa().name()));
        stop.store(begun >= 2, std::sync::atomic::Ordering::Relaxed);
    };
    let first = search(level, &machine).seconds(10.0 * SECONDS).stop(&stop).run(&mut progress).profile;
    assert!((1..5).contains(&first.entries.len()), "{first:#?}");
    let second = [1.0, 5.0, 25.0].map(|times| times * SECONDS).into_iter().map(|seconds| {
        let second = search(level, &machine).seconds(seconds).resume(&first);
        second.run(&mut |_| ())
    });
    let mut second = second.skip_while(|second| second.profile.entries.len() == first.entries.len());
    let second = second.next().expect("there is time for another class");
    for entry in &first.entries {
        assert!(second.profile.entries.contains(entry));
    }
    let found = search(level, &machine).compare([&first, &second.profile], 0.0);
    assert_eq!(found.len(), first.entries.len());
    assert!(found.iter().all(|(_, run_off)| run_off.is_none()), "the same choices");
}

#[test]
fn a_record_is_kept_replayed_and_continued() {
    let machine = Machine::detect();
    let level = Level::best();
    let isa = level.isa().name();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("record");
    let search = search(level, &machine).seconds(f64::INFINITY);
    let mut kept = 0;
    let empty = Record::open(&path, &machine, isa).unwrap();
    let record = search.record(empty, &mut |_| (), &mut |_| kept += 1);
    assert_eq!((kept, record.contests.len()), (6, 6));
    record.save(&path).unwrap();
    let again = Record::open(&path, &machine, isa).unwrap();
    assert_eq!(again, record);
    let same = search.record(again, &mut |_| (), &mut |_| kept += 1);
    assert_eq!((kept, &same), (6, &record));

    let outcome = replay(&record, 5.0, 1);
    assert!(
        outcome
            .winners
            .iter()
            .zip(&record.contests)
            .all(|(winner, recorded)| { winner.is_some() != (recorded.contest.role == Role::Crossing) })
    );
    assert_eq!(replay(&record, 5.0, 1).winners, outcome.winners, "a replay is repeated bit by bit");

    assert!(matches!(Record::open(&path, &machine, "sse9"), Err(RecordError::Other { .. })));
    std::fs::write(&path, b"nothing").unwrap();
    assert!(matches!(Record::load(&path), Err(RecordError::Format { .. })));
}
