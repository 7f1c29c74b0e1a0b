//! Options of every kind, for suites that compare two ways of computing the same.

use regard::{Align, Count, RowScale, Temperature, Weighting};

use crate::Spec;

/// What specs borrow: one number for each query head.
#[derive(Clone, Debug)]
pub struct Lists {
    slopes: Vec<f32>,
    sinks: Vec<f32>,
    per_head: Vec<f32>,
}

impl Lists {
    /// Lists for so many heads.
    pub fn new(heads: usize) -> Self {
        Self {
            slopes: (0..heads).map(|head| if head % 3 == 2 { -0.0625 } else { 0.5 / (1 + head) as f32 }).collect(),
            sinks: (0..heads).map(|head| head as f32 - 1.5).collect(),
            per_head: (0..heads).map(|head| [1.0, 0.5, 1.75, 0.7][head % 4]).collect(),
        }
    }

    /// A weighting plain, and with options of every kind that are the same for any number of queries and keys: masks and ALiBi
    /// count from the last key. Nothing depends on the length of a part of the keys if `of_parts`.
    pub fn specs(&self, weighting: &Weighting, of_parts: bool) -> Vec<Spec<'_>> {
        let count = of_parts.then_some(Count::Constant(40.0));
        let plain = || Spec { count, ..Spec::new(weighting.clone()) };
        let causal = || Spec { causal: Some(Align::BottomRight), ..plain() };
        let per_head = Some(Temperature::PerHead(&self.per_head));
        let visible = count.or(Some(Count::Visible));
        let mut all = vec![
            plain(),
            causal(),
            Spec { softcap: Some(4.0), temperature: Some(Temperature::Constant(0.6)), ..causal() },
            Spec { window: Some((Some(20), None)), alibi: Some(&self.slopes), ..causal() },
            Spec {
                align: Some(Align::BottomRight),
                window: Some((Some(9), Some(0))),
                temperature: per_head,
                ..plain()
            },
            Spec { log_n: Some(0.5), count: visible, strict: true, ..causal() },
            Spec { scale: Some(-0.3), alibi: Some(&self.slopes), temperature: per_head, ..causal() },
        ];
        match weighting {
            Weighting::Softmax => {
                all.push(Spec { sinks: Some(&self.sinks), ..causal() });
                all.push(Spec { sinks: Some(&self.sinks), softcap: Some(3.0), temperature: per_head, ..plain() });
            }
            Weighting::Relu | Weighting::Sigmoid { .. } | Weighting::Identity => all.push(Spec {
                row_scale: Some(RowScale::InvSqrtN),
                count: visible,
                coefficient: Some(0.3),
                ..causal()
            }),
            _ => {}
        }
        all
    }
}
