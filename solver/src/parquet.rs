//! A submission as a parquet file: columns `id` (UTF-8) and `answer` (64-bit integers), neither with nulls. One row
//! group, no compression: every reader takes that. Called by `submission`.

use std::io;
use std::sync::Arc;

use parquet::basic::{LogicalType, Repetition, Type as PhysicalType};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;

/// The file.
pub(crate) fn encode(rows: &[(String, i64)]) -> io::Result<Vec<u8>> {
    encode_rows(rows).map_err(io::Error::other)
}

fn encode_rows(rows: &[(String, i64)]) -> Result<Vec<u8>, ParquetError> {
    let column = |name: &str, physical, logical| {
        let column = Type::primitive_type_builder(name, physical);
        column.with_repetition(Repetition::REQUIRED).with_logical_type(logical).build().map(Arc::new)
    };
    let id = column("id", PhysicalType::BYTE_ARRAY, Some(LogicalType::String))?;
    let answer = column("answer", PhysicalType::INT64, None)?;
    let schema = Arc::new(Type::group_type_builder("submission").with_fields(vec![id, answer]).build()?);
    let properties = Arc::new(WriterProperties::builder().set_created_by("aimo-engine".to_string()).build());
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, properties)?;
    let mut group = file.next_row_group()?;
    let ids: Vec<ByteArray> = rows.iter().map(|(id, _)| id.as_str().into()).collect();
    let answers: Vec<i64> = rows.iter().map(|(_, answer)| *answer).collect();
    if let Some(mut column) = group.next_column()? {
        column.typed::<ByteArrayType>().write_batch(&ids, None, None)?;
        column.close()?;
    }
    if let Some(mut column) = group.next_column()? {
        column.typed::<Int64Type>().write_batch(&answers, None, None)?;
        column.close()?;
    }
    group.close()?;
    file.close()?;
    Ok(bytes)
}

/// Reads a file back.
#[cfg(test)]
pub(crate) fn decode(bytes: &[u8]) -> Vec<(String, i64)> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;
    let file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut &file, bytes).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let columns = reader.metadata().file_metadata().schema_descr().columns().to_vec();
    assert_eq!(columns.iter().map(|c| c.name().to_string()).collect::<Vec<_>>(), ["id", "answer"]);
    let row = |row: Result<parquet::record::Row, ParquetError>| {
        let row = row.unwrap();
        (row.get_string(0).unwrap().clone(), row.get_long(1).unwrap())
    };
    reader.get_row_iter(None).unwrap().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_the_same_after_they_were_written_and_read() {
        let many: Vec<(String, i64)> = (0..3000).map(|i| (format!("id {i}"), i * 7 - 5)).collect();
        for rows in [Vec::new(), vec![("\"é\n".to_string(), i64::MIN)], many] {
            assert_eq!(decode(&encode(&rows).unwrap()), rows);
        }
    }
}
