//! The tuner times the kernels that plans take, on every kind of machine: its first candidate is the plan's own choice, and a
//! profile that names any other is followed.

use regard::{
    Align, Attention, Dtype, Level, Plan, Problem, Quantised, Setup, Tensor, View, Weighting, bf16, f16, kernel_set,
};
use regard_profile::{Class, Confidence, Entry, Family, Machine, MaskClass, Profile, Run, Tool};
use regard_tuner::search::{Contest, Effort, Role, Search};

/// A row of zeros of any type, for tensors of any size.
struct Zeros {
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
    int8: Vec<i8>,
}

impl Zeros {
    fn new(columns: usize) -> Self {
        Self {
            f32: vec![0.0; columns],
            f16: vec![f16::ZERO; columns],
            bf16: vec![bf16::ZERO; columns],
            int8: vec![0; columns],
        }
    }

    fn tensor(&self, dtype: Dtype, [heads, rows, columns]: [usize; 3]) -> Tensor<'_> {
        let (shape, strides) = ([1, heads, rows, columns], [0, 0, 0, 1]);
        match dtype {
            Dtype::F32 => View::strided(&self.f32, shape, strides).unwrap().into(),
            Dtype::F16 => View::strided(&self.f16, shape, strides).unwrap().into(),
            Dtype::Bf16 => View::strided(&self.bf16, shape, strides).unwrap().into(),
            Dtype::Int8 => {
                let data = View::strided(&self.int8, shape, strides).unwrap();
                let scales = View::strided(&self.f32, [1, heads, rows, 1], strides).unwrap();
                Quantised { data, scales }.into()
            }
        }
    }
}

/// The plan of somebody who asks for nothing in particular, with so many query heads for one of keys.
fn plan(class: &Class, heads: usize, setup: &Setup) -> Plan {
    let Class { head_dim, value_dim, keys, queries, .. } = *class;
    let dtype = Dtype::ALL.into_iter().find(|dtype| dtype.name() == class.dtype).unwrap();
    let weighting = match class.family {
        Family::Exponential => Weighting::Softmax,
        Family::Selection => Weighting::HardLeft,
        Family::Pointwise => Weighting::Relu,
        Family::Normalised => Weighting::EvenPower { degree: 2 },
    };
    let options = Attention::new(weighting);
    let options = if class.mask == MaskClass::Banded { options.causal(Align::BottomRight) } else { options };
    let zeros = Zeros::new(head_dim.max(value_dim));
    let q = zeros.tensor(if dtype == Dtype::Int8 { Dtype::F32 } else { dtype }, [heads, queries, head_dim]);
    let [k, v] = [head_dim, value_dim].map(|columns| zeros.tensor(dtype, [1, keys, columns]));
    Plan::new(&Problem::new(&options, q, k, v).unwrap(), setup)
}

/// A profile whose only entry gives a class one of its candidates.
fn profile(machine: &Machine, contest: &Contest, candidate: usize) -> Profile {
    let tool = Tool {
        name: "regard-tests".to_owned(),
        version: "0".to_owned(),
        kernels_fingerprint: kernel_set().fingerprint,
    };
    let run =
        Run { unix_time: 0, seconds: 0.0, mode: "test".to_owned(), confidence: Confidence::Low, notes: Vec::new() };
    let entry = Entry {
        class: contest.class.clone(),
        config: contest.candidates[candidate].clone(),
        gflops: 1.0,
        fraction_of_peak: 0.5,
        ratio_to_model: 1.0,
        ratio_interval: None,
        samples: 1,
        runner_up: None,
        rivals: Vec::new(),
        why: "a test says so".to_owned(),
    };
    Profile { entries: vec![entry], ..Profile::new(tool, machine.clone(), run) }
}

#[test]
fn candidates_are_what_plans_take() {
    for vendor in ["GenuineIntel", "AuthenticAMD"] {
        let machine = Machine { vendor: vendor.to_owned(), ..Machine::default() };
        for &level in Level::available() {
            let untuned = Setup { level, machine: machine.clone(), profile: None };
            let contests = Search::new(level, &machine, Effort::Default).contests();
            assert!(contests.iter().any(|contest| contest.class.dtype == "bf16" && contest.role == Role::Rows));
            for contest in contests.iter().filter(|contest| contest.role != Role::Crossing) {
                let class = &contest.class;
                let first = &contest.candidates[0];
                // Heads are no part of a class, and few of them do not take tiles.
                let heads = if first.kernel.ends_with("_amx") { 8 } else { 1 };
                let own = plan(class, heads, &untuned);
                assert_eq!((own.kernel(), own.key_block()), (&*first.kernel, first.key_block), "{vendor}: {class}");
                for (i, config) in contest.candidates.iter().enumerate() {
                    let profile = Some(profile(&machine, contest, i).into());
                    let tuned = plan(class, heads, &Setup { profile, ..untuned.clone() });
                    let found = (tuned.kernel(), tuned.key_block());
                    assert_eq!(found, (&*config.kernel, config.key_block), "{vendor}: {class}");
                    assert!(tuned.profile_entry().is_some(), "{vendor}: {class}, {config:?}");
                }
            }
        }
    }
}
