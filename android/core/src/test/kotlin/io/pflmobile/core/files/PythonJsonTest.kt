package io.pflmobile.core.files

import io.kotest.property.Arb
import io.kotest.property.arbitrary.long
import io.kotest.property.checkAll
import kotlinx.coroutines.test.runTest
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.CsvSource
import kotlin.test.Test
import kotlin.test.assertEquals

class PythonJsonTest {
    @ParameterizedTest
    @CsvSource(
        "0.25,0.25",
        "1.7E9,1700000000.0",
        "1E15,1000000000000000.0",
        "1E16,1e+16",
        "1.5E22,1.5e+22",
        "1E-4,0.0001",
        "1E-5,1e-05",
        "-1.25E-7,-1.25e-07",
        "0.1,0.1",
        "-0.0,-0.0",
        "4.9E-324,5e-324",
        "1.7976931348623157E308,1.7976931348623157e+308",
        "2E-3,0.002",
        "123456.789,123456.789",
        "1764467469.125,1764467469.125",
    )
    fun `floats are written as Python writes them`(
        value: Double,
        want: String,
    ) {
        assertEquals(want, pythonFloat(value))
    }

    @Test
    fun `floats come back as they were`() =
        runTest {
            checkAll(500, Arb.long()) {
                val value = Double.fromBits(it)
                if (value.isFinite()) assertEquals(value, pythonFloat(value).toDouble())
            }
        }

    @Test
    fun `keys are sorted and text is ASCII`() {
        val text = "{\"b\":[1,2.0,null,true],\"a\":\"\\u00ef\\n\\\"\\u0001\\u007f\",\"\\ud83d\\ude00\":{},\"\\uff5a\":[]}"
        val want = "{\"a\": \"\\u00ef\\n\\\"\\u0001\\u007f\", \"b\": [1, 2.0, null, true], \"\\uff5a\": [], \"\\ud83d\\ude00\": {}}"
        assertEquals(want, pythonJson(parseJson(text)))
    }
}
