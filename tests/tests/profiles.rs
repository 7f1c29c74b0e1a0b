//! Profiles: used where they fit, set aside with a reason where they do not, and missed by nobody.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use regard::{Attention, Dtype, Execution, Level, Plan, Problem, Setup, View, Weighting, kernel_set};
use regard_kernels::table::{KEY_BLOCKS, QUERY_BLOCKS, kernels, rows_kernels_for};
use regard_profile::{Config, Machine, PROFILE_VARIABLE, Profile, ProfileError, TunedReading, load, save};
use regard_tests::{Case, Layout, Random, Spec, Stored, Tensor, check, levels, profile_for, setup_of, this_test};

fn tensor() -> Tensor {
    Tensor::normal([1, 2, 40, 16], Layout::Bhsd, &mut Random::new(1))
}

/// A profile of this machine that asks for the last kernel of the best level that multiplies f32 in vectors, with blocks that no model gives.
fn profile() -> Profile {
    let mut list =
        kernels(Level::best()).iter().filter(|kernel| kernel.dtype == Dtype::F32 && kernel.extension.is_none());
    profile_for(&Machine::detect(), list.next_back().expect("every level has a kernel for f32"), 34, 13)
}

fn plan(setup: &Setup, options: &Attention<'_>) -> Plan {
    let q = tensor();
    let problem = Problem::new(options, q.view(), q.view(), q.view()).expect("valid");
    Plan::new(&problem, setup)
}

/// Key block, query block, kernel.
fn choice(plan: &Plan) -> (usize, usize, &'static str) {
    (plan.key_block(), plan.query_block(), plan.kernel())
}

#[test]
fn a_plan_follows_the_profile_and_says_so() {
    let setup = Setup { level: Level::best(), machine: Machine::detect(), profile: Some(profile().into()) };
    let kernel = profile().entries[0].config.kernel.clone();
    let tuned = plan(&setup, &Attention::softmax());
    assert_eq!(choice(&tuned), (34, 13, &*kernel));
    let text = tuned.explain().to_string();
    for part in ["profile entry", "a test says so", &kernel, "34 keys", "13 rows"] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    // Another family is far, and still nearer than nothing.
    assert_eq!(choice(&plan(&setup, &Attention::new(Weighting::Relu))), (34, 13, &*kernel));
    // Portable numerics do not look.
    let portable = plan(&setup, &Attention::softmax().numerics(regard::Numerics::Portable));
    assert_ne!(portable.key_block(), 34);
    assert!(portable.explain().to_string().contains("portable numerics"));
    // Nor does another level.
    for level in levels().iter().filter(|level| level.isa() != Level::best().isa()) {
        let other = plan(&setup, &Attention::softmax().isa(level.isa()));
        assert!(other.explain().to_string().contains("no profile"), "{}", other.explain());
    }
    // And it computes what is asked for.
    let q = tensor();
    for weighting in regard_tests::weightings() {
        check(&Case::new(Spec::new(weighting), &q, &q, &q), &setup);
    }
}

#[test]
fn without_a_profile_the_model_decides() {
    for level in levels() {
        let setup = Setup { machine: Machine::detect(), ..setup_of(*level) };
        let modelled = plan(&setup, &Attention::softmax());
        assert!(kernels(*level).iter().any(|kernel| kernel.name == modelled.kernel()));
        assert!(modelled.key_block() >= 48 && modelled.key_block().is_multiple_of(48));
        assert!(modelled.explain().to_string().contains("no profile"), "{}", modelled.explain());
        let tuned = Setup { profile: Some(profile().into()), ..setup.clone() };
        let without = plan(&tuned.without_profile(), &Attention::softmax());
        assert_eq!(choice(&without), choice(&modelled));
    }
}

/// What decides the bits of a result is a function of one sequence: batch and heads and the length of others have no part
/// in it. (They may have one in how many rows make a task.)
#[test]
fn blocks_do_not_depend_on_company() {
    let mut random = Random::new(2);
    let setup = Setup { level: Level::best(), machine: Machine::detect(), profile: Some(profile().into()) };
    for setup in [&setup, &setup.without_profile()] {
        let choices: Vec<_> = [(1, 1), (1, 8), (7, 1), (3, 4)]
            .map(|(batch, heads)| {
                let q = Tensor::normal([batch, heads, 20, 16], Layout::Bhsd, &mut random);
                let problem = Problem::new(&Attention::softmax(), q.view(), q.view(), q.view()).expect("valid");
                let plan = Plan::new(&problem, setup);
                (plan.kernel(), plan.key_block())
            })
            .into();
        assert!(choices.iter().all(|choice| *choice == choices[0]), "{choices:?}");
    }
}

/// A file that `save` wrote, changed as text.
fn altered(directory: &Path, name: &str, change: impl Fn(String) -> String) -> PathBuf {
    let path = directory.join(name);
    save(&path, &profile()).expect("the directory can be written to");
    let text = std::fs::read_to_string(&path).expect("it was written");
    let changed = change(text.clone());
    std::fs::write(&path, changed).expect("the directory can be written to");
    path
}

/// Whether an error is the one that a file should give.
type IsExpected = fn(&ProfileError) -> bool;

/// Every way in which a profile can be unfit, as a file and the error that it gives.
fn bad_profiles(directory: &Path) -> Vec<(PathBuf, IsExpected)> {
    let fingerprint = Machine::detect().fingerprint();
    let kernels = kernel_set().fingerprint;
    let name = profile().entries[0].config.kernel.clone();
    let replace = |from: String, to: &'static str| move |text: String| text.replace(&from, to);
    let elsewhere = directory.join("machine.json");
    let machine = Machine { model: 77, ..Machine::detect() };
    save(&elsewhere, &Profile { fingerprint: machine.fingerprint(), machine, ..profile() }).expect("written");
    vec![
        (directory.join("absent.json"), |error| matches!(error, ProfileError::Io { .. })),
        (directory.to_owned(), |error| matches!(error, ProfileError::NotAFile { .. })),
        (elsewhere, |error| matches!(error, ProfileError::WrongMachine { .. })),
        (altered(directory, "empty.json", |_| String::new()), |error| matches!(error, ProfileError::Json { .. })),
        (altered(directory, "cut.json", |text| text[..text.len() / 2].to_owned()), |error| {
            matches!(error, ProfileError::Json { .. })
        }),
        (altered(directory, "other.json", replace(fingerprint, "0000000000000000")), |error| {
            matches!(error, ProfileError::Inconsistent { .. })
        }),
        (altered(directory, "kernels.json", replace(kernels, "0000000000000000")), |error| {
            matches!(error, ProfileError::WrongKernels { .. })
        }),
        (altered(directory, "name.json", replace(name, "no_such_kernel")), |error| {
            matches!(error, ProfileError::UnknownKernel { .. })
        }),
        (altered(directory, "newer.json", replace("\"schema\": 1".to_owned(), "\"schema\": 99")), |error| {
            matches!(error, ProfileError::NewerSchema { .. })
        }),
        (altered(directory, "odd.json", replace("\"key_block\": 34".to_owned(), "\"key_block\": 35")), |error| {
            matches!(error, ProfileError::OddKeyBlock { .. })
        }),
        (altered(directory, "huge.json", replace("\"key_block\": 34".to_owned(), "\"key_block\": 1000000")), |error| {
            matches!(error, ProfileError::OutOfRange { .. })
        }),
        (altered(directory, "zero.json", replace("\"query_block\": 13".to_owned(), "\"query_block\": 0")), |error| {
            matches!(error, ProfileError::OutOfRange { .. })
        }),
    ]
}

#[test]
fn unfit_files_are_refused_with_a_reason() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let good = altered(directory.path(), "good.json", |text| text);
    assert_eq!(load(&good, &Machine::detect(), &kernel_set()).expect("good"), profile());
    for (path, expected) in bad_profiles(directory.path()) {
        let error = load(&path, &Machine::detect(), &kernel_set()).expect_err("unfit");
        assert!(expected(&error), "{}: {error:?}", path.display());
        assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
    }
}

/// What a child process does: prints whether there is a profile, and how a problem is planned and computed.
#[test]
#[ignore = "run by the test below in a process of its own"]
fn child_prints_its_plan() {
    let setup = Setup::detect().expect("no level is named");
    let plan = plan(&setup, &Attention::softmax());
    println!("profile={} choice={:?}", setup.profile.is_some(), choice(&plan));
    let q = tensor();
    let case = Case::new(Spec::new(Weighting::Softmax), &q, &q, &q);
    let output = regard_tests::run(&case.problem(), &setup, Execution::Serial);
    regard_tests::compare(&case, &case.problem(), &output);
    regard::attention(&Attention::softmax(), q.view(), q.view(), q.view()).expect("a bad profile is no error");
    println!("computed");
}

fn child(profile: Option<&Path>, home: &Path) -> String {
    let mut command = this_test("child_prints_its_plan");
    // So that a profile of the user's is not found.
    command.env("XDG_DATA_HOME", home).env("HOME", home).env_remove(regard::ISA_VARIABLE);
    match profile {
        Some(path) => command.env(PROFILE_VARIABLE, path),
        None => command.env_remove(PROFILE_VARIABLE),
    };
    let output = command.output().expect("this test can start itself");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(
        output.status.success() && text.contains("computed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The library finds a good profile, by the variable and in the user's directory, and computes without a bad one.
#[test]
fn profiles_of_a_process() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let kernel = profile().entries[0].config.kernel.clone();
    let tuned = format!("profile=true choice=(34, 13, {kernel:?})");

    let good = altered(directory.path(), "good.json", |text| text);
    assert!(child(Some(&good), directory.path()).contains(&tuned));
    for (path, _) in bad_profiles(directory.path()) {
        let text = child(Some(&path), directory.path());
        assert!(text.contains("profile=false"), "{}: {text}", path.display());
    }
    assert!(child(None, directory.path()).contains("profile=false"), "nobody has tuned there");

    let name = format!("regard/profile-{}.json", Machine::detect().fingerprint());
    save(&directory.path().join(name), &profile()).expect("the directory can be written to");
    assert!(child(None, directory.path()).contains(&tuned));
}

/// A way of reading that was timed on calls of one row is for such calls, whatever their class; others go by the model.
#[test]
fn a_tuned_reading_serves_calls_of_as_many_rows() {
    for &level in levels() {
        let rows = rows_kernels_for(level, Dtype::F32, |_| false)[0];
        let machine = Machine::default();
        let mut profile = profile_for(&machine, &kernels(level)[0], 64, 64);
        let tuned = TunedReading { rows: 1, turn: 512, ahead: 77 };
        profile.entries[0].config = Config { reading: Some(tuned), ..Config::new(rows.name, 64, rows.group) };
        let setup = Setup { level, machine, profile: Some(profile.into()) };
        let explained = |queries: usize, group: usize, setup: &Setup| {
            let q = vec![0.0; group * queries * 8];
            let k = [0.0; 70 * 8];
            let q = View::bhsd(&q, [1, group, queries, 8]).unwrap();
            let k = View::bhsd(&k, [1, 1, 70, 8]).unwrap();
            let problem = Problem::new(&Attention::softmax(), q, k, k).unwrap();
            Plan::new(&problem, setup).explain().to_string()
        };
        let says = "512 bytes of them; asked for 77 bytes ahead";
        let one = explained(1, 1, &setup);
        assert!(one.contains(says), "{one}");
        for (queries, group) in [(2, 1), (1, 2), (3, 1), (1, 8)] {
            let more = explained(queries, group, &setup);
            assert!(more.contains(rows.name) && !more.contains(says), "{more}");
            assert!(more.contains("\nmemory "), "{more}");
        }
    }
}

/// Every kernel that there is, in entries of every element type and with blocks at the ends of what is accepted: whatever
/// somebody writes into a file that loads, results are right.
#[test]
fn edited_profiles_compute_what_is_asked_for() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = directory.path().join("edited.json");
    let machine = Machine::detect();
    let q = tensor();
    let k = Tensor::normal([1, 2, 70, 16], Layout::Bhsd, &mut Random::new(3));
    let few = Tensor::normal([1, 2, 3, 16], Layout::Bhsd, &mut Random::new(4));
    let (mut accepted, mut refused) = (0, 0);
    for name in regard_kernels::table::names() {
        for (key_block, query_block) in [(*KEY_BLOCKS.start(), 1), (34, *QUERY_BLOCKS.end()), (*KEY_BLOCKS.end(), 7)] {
            for dtype in Dtype::ALL {
                let mut edited = profile();
                let entry = &mut edited.entries[0];
                entry.class.dtype = dtype.name().to_owned();
                entry.config = Config::new(name, key_block, query_block);
                let reading = |rows, turn, ahead| Some(TunedReading { rows, turn, ahead });
                entry.config.reading = match dtype {
                    Dtype::F32 => None,
                    Dtype::F16 => reading(usize::MAX, usize::MAX, usize::MAX),
                    Dtype::Bf16 => reading(0, 1, 1),
                    Dtype::Int8 => reading(2, 0, 0),
                };
                save(&path, &edited).expect("the directory can be written to");
                match load(&path, &machine, &kernel_set()) {
                    Ok(loaded) => {
                        accepted += 1;
                        let setup =
                            Setup { level: Level::best(), machine: machine.clone(), profile: Some(loaded.into()) };
                        for q in [&q, &few] {
                            let q_dtype = if dtype == Dtype::Int8 { Dtype::F32 } else { dtype };
                            let stored = Stored::three([q, &k, &k], q_dtype, dtype);
                            check(&Case::stored(Spec::new(Weighting::Softmax), &stored), &setup);
                        }
                    }
                    Err(error) => {
                        refused += 1;
                        assert!(matches!(error, ProfileError::OutOfRange { .. }), "{error}");
                    }
                }
            }
        }
    }
    assert!(accepted > 0 && refused == 0, "{accepted} accepted, {refused} refused");
}
