package io.pflmobile.sdk

import io.pflmobile.core.text.PieceRules
import org.junit.Test
import org.objectweb.asm.ClassReader
import org.objectweb.asm.ClassWriter
import org.objectweb.asm.Opcodes
import org.objectweb.asm.commons.ClassRemapper
import org.objectweb.asm.commons.Remapper
import kotlin.test.assertEquals
import kotlin.test.assertNotEquals

/** A release of an app renames classes and packages. */
class MinifiedTest {
    /** Has the classes of the core's text rules in a package of another name, as R8 would leave them. */
    private class Renaming : ClassLoader(MinifiedTest::class.java.classLoader) {
        override fun findClass(name: String): Class<*> {
            if (!name.startsWith("a.")) throw ClassNotFoundException(name)
            val file = FROM + name.substringAfterLast('.') + ".class"
            val bytes = (getResourceAsStream(file) ?: throw ClassNotFoundException(name)).use { it.readBytes() }
            val writer = ClassWriter(0)
            val renamed =
                object : Remapper(Opcodes.ASM9) {
                    override fun map(internalName: String) =
                        if (internalName.startsWith(FROM)) "a/${internalName.removePrefix(FROM)}" else internalName
                }
            ClassReader(bytes).accept(ClassRemapper(writer, renamed), 0)
            return writer.toByteArray().let { defineClass(name, it, 0, it.size) }
        }
    }

    @Test
    fun `the table of letters is found where classes have other names`() {
        val rules = Class.forName("a.PieceRules", true, Renaming())
        assertNotEquals<Class<*>>(PieceRules::class.java, rules)
        val companion = rules.getField("Companion").get(null)
        val newest = companion.javaClass.getMethod("getNEWEST").invoke(companion)
        val text = "Don\u2019t be late, \u00c9t\u00e9!"
        assertEquals<Any?>(PieceRules.NEWEST.cut(text), rules.getMethod("cut", String::class.java).invoke(newest, text))
    }

    private companion object {
        const val FROM = "io/pflmobile/core/text/"
    }
}
