package io.pflmobile.core.text

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.DataException
import io.pflmobile.core.errors.OutOfVocabularyException
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.float
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.long
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

/** `text.json` and the words of `slots.json`. */
class TextVectorsTest {
    private val file = Vectors.read("text.json")

    private fun words(element: JsonElement?): List<String> = checkNotNull(element).jsonArray.map { it.jsonPrimitive.content }

    private fun ints(element: JsonElement?): List<Int> = checkNotNull(element).jsonArray.map { it.jsonPrimitive.int }

    @Test
    fun `the table is the one that Python loads`() {
        val table = file.getValue("table").jsonObject
        val points = 0..0x10FFFF
        val lower = ByteBuffer.allocate(4 * 0x110000).order(ByteOrder.LITTLE_ENDIAN)
        points.forEach { lower.putInt(UnicodeTable.lower(it)) }
        val found =
            mapOf(
                "kinds" to ByteArray(0x110000) { UnicodeTable.kind(it).code.toByte() },
                "lower" to lower.array(),
                "assigned" to ByteArray(0x110000) { if (it in UnicodeTable.assigned) 1 else 0 },
                "accents" to ByteArray(0x110000) { if (it in UnicodeTable.accents) 1 else 0 },
            )
        for ((name, digest) in table.getValue("sha256").jsonObject) {
            val bytes = MessageDigest.getInstance("SHA-256").digest(found.getValue(name))
            assertEquals(digest.jsonPrimitive.content, bytes.joinToString("") { "%02x".format(it) }, name)
        }
        assertEquals(table.getValue("rules").jsonPrimitive.int, UnicodeTable.rules)
    }

    @Test
    fun `every text is cut as Python cuts it`() {
        for (case in file.getValue("cut").jsonArray.map { it.jsonObject }) {
            val text = case.getValue("text").jsonPrimitive.content
            assertEquals(words(case["2"]), PieceRules.VERSION_2.cut(text), shown(text))
            if ("1" in case) assertEquals(words(case["1"]), PieceRules.VERSION_1.cut(text), shown(text))
        }
    }

    @Test
    fun `texts are folded as Python folds them`() {
        for ((text, folded) in file.getValue("fold").jsonArray.map(::words)) {
            assertEquals(folded, Pieces.fold(Points.of(text)).text(), shown(text))
        }
    }

    @Test
    fun `symbols and digits are told apart`() {
        for ((piece, symbol, digit) in file.getValue("pieces").jsonArray.map { it.jsonArray }) {
            val word = piece.jsonPrimitive.content
            assertEquals(symbol.jsonPrimitive.boolean, PieceRules.VERSION_2.isSymbol(word), shown(word))
            assertEquals(digit.jsonPrimitive.boolean, Pieces.holdsDigit(word), shown(word))
        }
    }

    @Test
    fun `rows and contexts are Python's`() {
        val about = file.getValue("encode").jsonObject
        val tokenizer = WordTokenizer(words(about["vocabulary"]))
        val messages = words(about["messages"])
        for (case in about.getValue("cases").jsonArray.map { it.jsonObject }) {
            val (length, slots) = listOf("length", "slots").map { case.getValue(it).jsonPrimitive.int }
            val (dropUnknown, wordsOnly) = listOf("drop_unknown", "words_only").map { case.getValue(it).jsonPrimitive.boolean }
            val encoder = TextEncoder(tokenizer, length, tokenizer.size, slots, words(case["words"]))
            assertEquals(case.getValue("ids").jsonArray.map(::ints), messages.map(encoder::ids))
            val rows = encoder.encode(messages, dropUnknown, wordsOnly)
            val wanted = case.getValue("rows").jsonObject
            assertEquals(longs(wanted["tokens"]), rows.tokens.values.toList())
            assertEquals(longs(wanted["labels"]), rows.labels.values.toList())
            assertEquals(flat(wanted["weight"]).map { it.float }, rows.weight.values.toList())
            assertEquals(listOf(wanted.getValue("tokens").jsonArray.size, length), rows.tokens.shape)
            for ((message, context) in messages.zip(case.getValue("contexts").jsonArray.map { it.jsonObject })) {
                assertContext(context, encoder.context(message))
            }
        }
    }

    private fun assertContext(
        wanted: JsonObject,
        found: TextContext,
    ) {
        assertEquals(longs(wanted["tokens"]), found.tokens.values.toList())
        assertEquals(wanted.getValue("position").jsonArray.map { it.jsonPrimitive.long }, found.position.values.toList())
        assertEquals(listOf(1, found.tokens.size), found.tokens.shape)
    }

    private fun flat(element: JsonElement?): List<JsonPrimitive> =
        checkNotNull(element).jsonArray.flatMap { row -> row.jsonArray.map { it.jsonPrimitive } }

    private fun longs(element: JsonElement?): List<Long> = flat(element).map { it.long }

    @Test
    fun `slots go to the words that Python chooses`() {
        val about = Vectors.read("slots.json")
        val tokenizer = WordTokenizer(words(about["vocabulary"]))
        val messages = words(about["messages"])
        for (case in about.getValue("cases").jsonArray.map { it.jsonObject }) {
            val blocked = BlockList.empty() + words(case["blocked"])
            val slots = case.getValue("slots").jsonPrimitive.int
            val encoder = TextEncoder(tokenizer, 8, tokenizer.size, slots, words(case["words"]), blocked)
            val chosen = encoder.chooseWords(messages, case.getValue("min_count").jsonPrimitive.int)
            assertEquals(words(case["chosen"]), chosen)
            assertEquals(ints(case["ids"]), encoder.withWords(chosen).ids(messages.last()))
        }
    }

    @Test
    fun `ids become words again, and others are refused`() {
        val tokenizer = WordTokenizer(WordTokenizer.SPECIALS + listOf("see", "you"))
        val encoder = TextEncoder(tokenizer, 4, 8, 2, listOf("zorp"))
        assertEquals(listOf("see", "<unk>", "zorp", "<unk>"), listOf(4, 7, 8, 9).map(encoder::word))
        assertEquals(listOf(true, false, true, false, true), listOf(0, 4, 7, 8, 9).map(encoder::isSpecial))
        for (wrong in listOf(-1, 10)) assertFailsWith<OutOfVocabularyException> { encoder.word(wrong) }
        assertFailsWith<OutOfVocabularyException> { tokenizer.word(6) }
        assertFailsWith<ConfigException> { TextEncoder(tokenizer, 1, 8) }
        assertFailsWith<ConfigException> { TextEncoder(tokenizer, 4, 5) }
        assertFailsWith<ConfigException> { TextEncoder(tokenizer, 4, 8, 1, listOf("a", "b")) }
        assertFailsWith<ConfigException> { TextEncoder(tokenizer, 4, 8, 1, listOf("see")) }
        assertFailsWith<ConfigException> { TextEncoder(tokenizer, 4, 8, 1, listOf("<unk>")) }
    }

    @Test
    fun `files of both versions are read, and others refused`() {
        val vocabulary = (WordTokenizer.SPECIALS + "see").withIndex().joinToString { (id, word) -> "\"$word\": $id" }
        val model = """"model": {"type": "WordLevel", "vocab": {$vocabulary}, "unk_token": "<unk>"}"""
        val new = """{"normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "added_tokens": [], $model}"""
        assertEquals(PieceRules.VERSION_2, WordTokenizer.fromJson(new).rules)
        val normalizers = listOf("NFKC", "Replace", "Replace", "Lowercase").joinToString { """{"type": "$it"}""" }
        val old = """{"normalizer": {"type": "Sequence", "normalizers": [$normalizers]}, "pre_tokenizer": {"type": "Split"}, $model}"""
        assertEquals(PieceRules.VERSION_1, WordTokenizer.fromJson(old).rules)
        for (wrong in listOf("", "[]", "{}", new.replace("WordLevel", "BPE"), new.replace(": 4}", ": 5}"), new.replace("null", "7"))) {
            assertFailsWith<DataException>(wrong) { WordTokenizer.fromJson(wrong) }
        }
    }

    @Test
    fun `long texts do no harm`() {
        for (unit in listOf("a", "é", "'`", "\u0301", "\u200d", "#\uFE0F", "\uD83D\uDC68\u200D", "ا\u200c", "\u00a8", "เ", "\uD83D")) {
            Pieces.cut(unit.repeat(100_000))
        }
    }

    private fun shown(text: String): String = text.map { if (it in ' '..'~') it.toString() else "\\u%04x".format(it.code) }.joinToString("")
}
