//! The options of a problem as JSON.

use clap::ValueEnum;
use regard::{Align, Count, Form, SigmoidBias, Split};
use serde_json::{Map, Value, json};

use crate::problem_args::{ProblemArgs, Window};

/// The weighting, the layout, the causal mask (null for none), and every other option that was given, under its name on
/// the command line with `_` for `-`. `packed` is whether sequences lie one after the other.
pub(super) fn to_json(problem: &ProblemArgs, packed: bool) -> Map<String, Value> {
    let mut options = Map::new();
    let mut put = |name: &str, value: Value| options.insert(name.to_owned(), value);
    put("weighting", problem.weighting.name().into());
    put("layout", problem.layout(packed).name().into());
    put("causal", problem.causal.map(align).into());
    let numbers = [
        ("coefficient", problem.coefficient),
        ("scale", problem.scale),
        ("softcap", problem.softcap),
        ("gates", problem.gates),
        ("temperature", problem.temperature),
        ("schedule_factor", problem.schedule_factor),
    ];
    let given = [
        ("degree", problem.degree.map(Value::from)),
        ("row_scale", problem.row_scale.map(name)),
        ("temperature_schedule", problem.temperature_schedule.map(name)),
        ("anti_causal", problem.anti_causal.map(align)),
        ("align", problem.align.map(align)),
        ("strict", problem.strict.then_some(Value::Bool(true))),
        ("window", problem.window.map(|Window { left, right }| json!([left, right]))),
        ("sigmoid_bias", problem.sigmoid_bias.map(sigmoid_bias)),
        ("n", problem.n.and_then(count)),
        ("split", split(problem.split)),
        ("form", (problem.form != Form::Auto).then(|| problem.form.name().into())),
        ("native_half", problem.native_half.then_some(Value::Bool(true))),
        ("no_native_half", problem.no_native_half.then_some(Value::Bool(true))),
        ("no_native_int8", problem.no_native_int8.then_some(Value::Bool(true))),
        ("no_f32_on_tiles", problem.no_f32_on_tiles.then_some(Value::Bool(true))),
    ];
    let numbers = numbers.map(|(name, number)| (name, number.map(Value::from)));
    for (name, value) in numbers.into_iter().chain(given) {
        if let Some(value) = value {
            put(name, value);
        }
    }
    options
}

fn name(value: impl ValueEnum) -> Value {
    value.to_possible_value().map(|value| value.get_name().to_owned()).into()
}

fn align(align: Align) -> Value {
    match align {
        Align::TopLeft => "top-left".into(),
        Align::BottomRight => "bottom-right".into(),
        Align::Offset(offset) => offset.into(),
    }
}

fn sigmoid_bias(bias: SigmoidBias) -> Value {
    match bias {
        SigmoidBias::Constant(bias) => bias.into(),
        SigmoidBias::NegLogN => "neg-log-n".into(),
    }
}

/// Nothing for the default.
fn count(n: Count) -> Option<Value> {
    match n {
        Count::AllKeys => None,
        Count::Visible => Some("visible".into()),
        Count::Constant(n) => Some(n.into()),
    }
}

/// Nothing for the default.
fn split(split: Split) -> Option<Value> {
    match split {
        Split::Auto => None,
        Split::Never => Some("never".into()),
        Split::Keys(keys) => Some(keys.into()),
    }
}
