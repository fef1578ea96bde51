package io.pflmobile.core.local

import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.NoExamplesException
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class PartsTest {
    private fun texts(count: Int) = Examples.Texts(List(count) { "$it" })

    private fun sizes(parts: Parts) = listOf(parts.train.size, parts.holdout.size, parts.test.size, parts.older)

    @Test
    fun `the newest are tested on, the newer held out`() {
        val found = parts(texts(100))
        assertEquals(listOf(64, 16, 20, 0), sizes(found))
        assertEquals("99", (found.test as Examples.Texts).texts.last())
        assertEquals("0", (found.train as Examples.Texts).texts.first())
    }

    @Test
    fun `a device keeps the newest so many`() {
        assertEquals(listOf(8, 2, 20, 70), sizes(parts(texts(100), most = 10)))
    }

    @Test
    fun `few examples leave one in each part`() {
        assertEquals(listOf(1, 1, 1, 0), sizes(parts(texts(3))))
        assertEquals(listOf(1, 0, 1, 0), sizes(parts(texts(2))))
        assertFailsWith<NoExamplesException> { parts(texts(1)) }
        assertFailsWith<ConfigException> { parts(texts(5), test = 1.0) }
    }
}
