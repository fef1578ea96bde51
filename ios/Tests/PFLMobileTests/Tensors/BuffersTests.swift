import Testing

@testable import PFLMobile

@Suite struct BuffersTests {
    @Test("numbers of every dtype are read")
    func numbers() {
        let half = RawTensor(.float16, [0, 0x3c, 0, 0xc0, 1, 0, 0, 0x7c], [4])
        #expect(Tensor.raw(half).doubles == [1, -2, 0x1p-24, .infinity])
        #expect(Tensor.raw(half).countNotFinite == 1)
        #expect(Tensor.raw(RawTensor(.int8, [0xff, 2], [2])).doubles == [-1, 2])
        #expect(Tensor.raw(RawTensor(.uint8, [0xff], [])).doubles == [255])
        #expect(Tensor.raw(RawTensor(.int16, [0, 1], [1])).doubles == [256])
        #expect(Tensor.raw(RawTensor(.int32, [1, 0, 0, 0x80], [1])).doubles == [-2_147_483_647])
        let wide = RawTensor(
            .float64,
            withUnsafeBytes(of: [Double.nan, 2.5].map(\.bitPattern)) { _ in
                [Double.nan, 2.5].flatMap { value in withUnsafeBytes(of: value.bitPattern) { Array($0) } }
            }, [2])
        #expect(Tensor.raw(wide).countNotFinite == 1)
        #expect(Tensor.long(LongTensor([-3], [1])).doubles == [-3])
    }

    @Test("NaN has bits, and zeros have signs")
    func bits() {
        let nan = Tensor.float(FloatTensor([.nan], [1]))
        #expect(nan.sameBits(nan))
        #expect(!Tensor.float(FloatTensor([0], [1])).sameBits(.float(FloatTensor([-0.0], [1]))))
        #expect(!Tensor.float(FloatTensor([0], [1])).sameBits(.float(FloatTensor([0], [1, 1]))))
    }
}
