//! Tokens of a level with an extension: the token of the level, and more instructions.

/// Such a token: its name, that of the level's token, how to find out whether the processor has the extension, the target
/// features of both, the types of vectors, whether products of bf16 are native; the operations that the extension has
/// instructions for, and, of those that some extension has, the ones that are left to the level.
macro_rules! extended {
    (
        $(#[$doc:meta])* $token:ident of $level:ident where $detected:expr, $features:literal;
        F32 = $f32:ty, Mask = $mask:ty, NATIVE_BF16 = $native_bf16:literal;
        native { $($native:tt)* }
        level { $($left:tt)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $token($level);

        impl $token {
            /// The token, if the processor has the instructions and the operating system saves their registers.
            pub fn detect() -> Option<Self> {
                let level = $level::detect()?;
                $detected.then_some(Self(level))
            }
        }

        // SAFETY: the token is made by `detect` only, or by `assume` under the promise that it was.
        unsafe impl $crate::Simd for $token {
            const ISA: $crate::Isa = <$level as $crate::Simd>::ISA;
            const LANES: usize = <$level as $crate::Simd>::LANES;
            const FUSED: bool = <$level as $crate::Simd>::FUSED;
            const NATIVE_BF16: bool = $native_bf16;
            type F32 = $f32;
            type Mask = $mask;

            #[inline(always)]
            unsafe fn assume() -> Self {
                // SAFETY: a machine that has the extension has the level.
                Self(unsafe { <$level as $crate::Simd>::assume() })
            }

            #[inline(always)]
            fn vectorize<O: $crate::Op>(self, op: O) -> O::Output {
                #[inline(never)]
                #[target_feature(enable = $features)]
                fn inner<O: $crate::Op>(op: O, token: $token) -> O::Output {
                    op.run(token)
                }
                // SAFETY: `self` is a token, which exists only where the features were detected.
                unsafe { inner(op, self) }
            }

            $crate::operations! { $features; $($native)* }

            $crate::delegate::delegate! {}
            $crate::delegate::delegate! { $($left)* }
        }
    };
}
pub(crate) use extended;

/// The operations that such a token takes from the token in its field 0: everything that no extension improves.
macro_rules! delegate {
    () => {
        $crate::delegate::delegate! {
            fn splat(x: f32) -> Self::F32;
            fn prefetch(p: *const f32) -> ();
            fn prefetch_far(p: *const f32) -> ();
            fn add(a: Self::F32, b: Self::F32) -> Self::F32;
            fn sub(a: Self::F32, b: Self::F32) -> Self::F32;
            fn mul(a: Self::F32, b: Self::F32) -> Self::F32;
            fn div(a: Self::F32, b: Self::F32) -> Self::F32;
            fn mul_add(a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
            fn max(x: Self::F32, acc: Self::F32) -> Self::F32;
            fn abs(x: Self::F32) -> Self::F32;
            fn gt(a: Self::F32, b: Self::F32) -> Self::Mask;
            fn ge(a: Self::F32, b: Self::F32) -> Self::Mask;
            fn eq(a: Self::F32, b: Self::F32) -> Self::Mask;
            fn not_lt(a: Self::F32, b: Self::F32) -> Self::Mask;
            fn is_nan(x: Self::F32) -> Self::Mask;
            fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask;
            fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask;
            fn any(mask: Self::Mask) -> bool;
            fn mask_from_bits(bits: u64) -> Self::Mask;
            fn mask_to_bits(mask: Self::Mask) -> u64;
            fn select(mask: Self::Mask, yes: Self::F32, no: Self::F32) -> Self::F32;
            fn split_exp2(x: Self::F32) -> (Self::F32, Self::F32);
            fn scale_by_exp2(p: Self::F32, n: Self::F32) -> Self::F32;
            fn low_bf16(pair: Self::F32) -> Self::F32;
            fn high_bf16(pair: Self::F32) -> Self::F32;
            fn quad_sums(x: [Self::F32; 4]) -> Self::F32;
            fn pair_i16(low: Self::F32, high: Self::F32) -> Self::F32;
            fn float_i32(x: Self::F32) -> Self::F32;
            fn interleave(a: Self::F32, b: Self::F32) -> [Self::F32; 2];
        }
        $crate::delegate::delegate! {
            unsafe fn load(p: *const f32) -> Self::F32;
            unsafe fn load_quad(p: *const f32) -> Self::F32;
            unsafe fn store(p: *mut f32, v: Self::F32) -> ();
            unsafe fn load_first(p: *const f32, n: usize) -> Self::F32;
            unsafe fn store_first(p: *mut f32, v: Self::F32, n: usize) -> ();
            unsafe fn transpose(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) -> ();
            unsafe fn load_f16(p: *const ::half::f16) -> Self::F32;
            unsafe fn load_bf16(p: *const ::half::bf16) -> Self::F32;
            unsafe fn load_i8(p: *const i8) -> Self::F32;
            unsafe fn load_words(p: *const i8) -> Self::F32;
            unsafe fn load_first_words(p: *const i8, n: usize) -> Self::F32;
            unsafe fn store_first_f16(p: *mut ::half::f16, v: Self::F32, n: usize) -> ();
            unsafe fn store_first_bf16(p: *mut ::half::bf16, v: Self::F32, n: usize) -> ();
        }

        #[inline(always)]
        fn lane_sums<const N: usize>(self, x: [Self::F32; N]) -> Self::F32 {
            self.0.lane_sums(x)
        }

        #[inline(always)]
        fn lane_sums_i32<const N: usize>(self, x: [Self::F32; N]) -> Self::F32 {
            self.0.lane_sums_i32(x)
        }
    };
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $ret:ty;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $type),*) -> $ret {
            self.0.$name($($arg),*)
        }
    )*};
    ($(unsafe fn $name:ident($($arg:ident: $type:ty),*) -> $ret:ty;)*) => {$(
        #[inline(always)]
        unsafe fn $name(self, $($arg: $type),*) -> $ret {
            // SAFETY: the same contract.
            unsafe { self.0.$name($($arg),*) }
        }
    )*};
}
pub(crate) use delegate;
