package io.pflmobile.core.text

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.files.fromHex
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertTrue

class BlockListTest {
    @Test
    fun `digests are Python's`() {
        val about = Vectors.read("slots.json").getValue("digests").jsonObject
        val key = checkNotNull(fromHex(about.getValue("key").jsonPrimitive.content))
        for ((word, digest) in about.getValue("words").jsonObject) {
            assertTrue(word in BlockList(key, setOf(digest.jsonPrimitive.content)), word)
        }
    }

    @Test
    fun `a word hides what it is a part of, and comes back from a file`() {
        val blocked = BlockList.empty() + listOf("zorp", "été")
        for (list in listOf(blocked, BlockList.fromJson(blocked.toJson(), "it"))) {
            assertTrue("zorp" in list && "zorp's" !in list && list.hides("zorp's") && list.hides("l'été"))
            assertFalse(list.hides("zorps") || list.hides(""))
            assertEquals(2, list.size)
        }
        assertEquals(0, BlockList.fromJson(BlockList.empty().toJson(), "it").size)
        assertFalse("zorp" in blocked.toJson().decodeToString())
    }
}
